"""Write the ops as a repository of the kernels hub: python hub/make_kernel.py FOLDER

FOLDER/build.toml
FOLDER/torch-ext/gft_kernels/     the sources, where kernel-builder looks for them
FOLDER/build/torch-<backend>/     what `kernels.get_local_kernel(FOLDER)` loads, and the hub

A variant is the package itself, under a name that no other has: the library imports it as the
module `id` of metadata.json, so that two versions may live in one process. Integrations stay out,
because a kernel may import torch and Triton alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "gft_kernels"
LEFT_OUT = ("integrations", "check", "env.py", "__pycache__", "*.pyc")


def write_kernel(folder: Path) -> list[Path]:
    """The variants' folders.

    Raises:
        FileExistsError: the folder holds anything.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds files already: give a new folder, or empty it.")
    general = tomllib.loads((HERE / "build.toml").read_text(encoding="utf-8"))["general"]
    sources = folder / "torch-ext" / PACKAGE.name
    shutil.copytree(PACKAGE, sources, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copy(HERE / "build.toml", folder)
    written = []
    for backend in general["backends"]:
        variant = folder / "build" / f"torch-{backend}"
        shutil.copytree(sources, variant)
        metadata = {
            "name": general["name"],
            "id": f"_{PACKAGE.name}_{backend}_{digest(sources)}",
            "version": general["version"],
            "license": general["license"],
            "python-depends": [],
            "backend": {"type": backend},
        }
        (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        written.append(variant)
    return written


def digest(sources: Path) -> str:
    """Seven letters that change with any file."""
    found = hashlib.sha256()
    for path in sorted(sources.rglob("*.py")):
        found.update(f"{path.relative_to(sources)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:7]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    for path in write_kernel(parser.parse_args().folder):
        print(path)
