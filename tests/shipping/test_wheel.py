"""What is shipped: sdist and wheel are built, and the wheel is used away from the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import gft_kernels

pytest.importorskip("build", reason="pip install build")

ROOT = Path(__file__).parents[2]
# What runs and builds leave at the top; gft/runs is a room of the package.
NOT_SOURCES = (".git", ".venv*", "build", "dist", "runs", "models", "*.egg-info", "shared")
CACHES = ("__pycache__", ".*_cache")
SMOKE = """
import importlib.metadata, pathlib, sys
import torch
import gft, gft_kernels
from gft_kernels import gft as objective, linear_policy_loss

here, tree = pathlib.Path(gft_kernels.__file__), pathlib.Path(sys.argv[1])
assert not here.is_relative_to(tree) and not pathlib.Path(gft.__file__).is_relative_to(tree), here
assert here.is_relative_to(sys.prefix), (here, sys.prefix)
assert pathlib.Path(gft.__file__).with_name("report").joinpath("style.css").is_file()
assert importlib.metadata.version("gft-kernels") == gft_kernels.__version__ == sys.argv[2]
hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
targets, advantages = torch.randint(0, 50, (6,)), torch.randn(6)
loss = linear_policy_loss(hidden, weight, targets, advantages, objective=objective(0.0)).loss
loss.backward()
logits = (hidden.detach() @ weight.detach().T).requires_grad_()
want = (advantages * torch.nn.functional.cross_entropy(logits, targets, reduction="none")).mean()
torch.testing.assert_close(loss, want)
want.backward()
torch.testing.assert_close(hidden.grad, logits.grad @ weight.detach())
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with an sdist of the tree, and the wheel made of that sdist."""
    folder = tmp_path_factory.mktemp("shipping")
    tree = folder / "tree"  # a copy: the build leaves folders behind
    top, below = shutil.ignore_patterns(*NOT_SOURCES, *CACHES), shutil.ignore_patterns(*CACHES)
    shutil.copytree(ROOT, tree, ignore=lambda path, names: (top if Path(path) == ROOT else below)(path, names))
    # The build's requirements are those of the test extra: nothing is downloaded.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
    run = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return folder / "dist"


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    assert f"-{gft_kernels.__version__}" in found.name
    return found


def files(*folders: str) -> set[str]:
    """Files of the tree by their names in an archive."""
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in paths if "__pycache__" not in path.parts}


def test_wheel_holds_the_packages_and_nothing_else(built):
    names = set(zipfile.ZipFile(only(built, "*.whl")).namelist())
    packages = {name for name in names if ".dist-info/" not in name}
    assert packages == files("gft_kernels", "gft")
    assert {"gft_kernels/py.typed", "gft/py.typed"} <= packages
    info = {name.split("/", 1)[1] for name in names - packages}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= info


def test_sdist_holds_what_tests_and_readme_need(built):
    with tarfile.open(only(built, "*.tar.gz")) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    folders = ("gft_kernels", "gft", "tests", "docs", "examples", "benchmarks", "hub", ".ci")
    assert files(*folders) <= names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "Makefile"} <= names
    assert "pyproject.toml" in names
    assert not [name for name in names if name.startswith(("runs/", "models/", ".venv/", ".git/"))]


def test_wheel_works_away_from_the_tree(built, tmp_path):
    """In an environment of its own, which sees this one's packages behind it."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, str(only(built, "*.whl"))], check=True)
    # Behind the wheel's own, and without the .pth files that lead an editable install to the tree.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(others))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    for command in (
        [str(python), "-c", SMOKE, str(ROOT), gft_kernels.__version__],
        [str(home / "bin" / "gft"), "--help"],
    ):
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
    assert "train" in run.stdout
    assert "eval" in run.stdout
