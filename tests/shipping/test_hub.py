"""The ops as a kernel of the hub: loaded from a local folder, under another name, beside the
package.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gft_kernels
from hub.make_kernel import PACKAGE, write_kernel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "kernel"
    write_kernel(path)
    return path


def import_variant(variant: Path) -> ModuleType:
    """A variant as `kernels` imports it: its __init__.py, under the id of its metadata."""
    name = json.loads((variant / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(package: ModuleType, backend: str) -> tuple[torch.Tensor, ...]:
    """Loss and gradients of a small problem, by either package."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 6, generator=g).requires_grad_()
    weight = torch.randn(20, 6, generator=g).requires_grad_()
    targets, advantages = torch.randint(20, (9,), generator=g), torch.randn(9, generator=g)
    objective = package.gspo(0.1, 0.2, sequence_ids=torch.arange(9) // 3) + package.gft(0.3)
    found = package.linear_policy_loss(hidden, weight, targets, advantages, objective=objective, backend=backend)
    return found.loss.detach(), *torch.autograd.grad(found.loss, (hidden, weight))


def assert_the_packages_own(kernel: ModuleType) -> None:
    assert Path(kernel.__file__).parent != PACKAGE
    for backend in ("chunked", "triton", "eager"):
        torch.testing.assert_close(result(kernel, backend), result(gft_kernels, backend), rtol=0, atol=0)


def test_variant_imports_nothing_of_the_package(folder):
    before = set(sys.modules)
    kernel = import_variant(folder / "build" / "torch-cpu")
    assert kernel.__all__ == gft_kernels.__all__
    assert_the_packages_own(kernel)
    mine = {name for name in set(sys.modules) - before if name.startswith(kernel.__name__)}
    assert f"{kernel.__name__}.engines.triton.engine" in mine
    for name in mine:
        assert Path(sys.modules[name].__file__).is_relative_to(folder)


@pytest.mark.usefixtures("plain_memory")
def test_compiled_programs_of_two_copies_do_not_meet(folder, monkeypatch):
    kernel = import_variant(folder / "build" / "torch-cuda")
    hidden, weight, targets = torch.randn(5, 4), torch.randn(7, 4), torch.arange(5)
    want = torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
    for package, other in ((kernel, gft_kernels), (gft_kernels, kernel)):

        def program(hidden, weight, targets, package=package):
            return package.linear_policy_loss(hidden, weight, targets, objective=package.sft(), backend="chunked").loss

        torch._dynamo.reset()
        with monkeypatch.context() as patch:
            patch.setattr(other.engines.chunked, "loss", None)
            compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(hidden, weight, targets), want)


def test_folder_is_whole_and_has_the_names_of_build_toml(folder):
    general = tomllib.loads((folder / "build.toml").read_text())["general"]
    ids = set()
    for backend in general["backends"]:
        variant = folder / "build" / f"torch-{backend}"
        metadata = json.loads((variant / "metadata.json").read_text())
        assert metadata["backend"] == {"type": backend}
        assert metadata["name"].replace("-", "_") == PACKAGE.name
        assert metadata["id"].isidentifier()
        ids.add(metadata["id"])
        for room in ("losses", "engines", "ops"):
            sources = {path.relative_to(PACKAGE) for path in (PACKAGE / room).rglob("*.py")}
            assert sources == {path.relative_to(variant) for path in (variant / room).rglob("*.py")}
        assert not (variant / "integrations").exists()
    assert len(ids) == len(general["backends"])


def test_folder_that_holds_files_is_left_alone(folder):
    with pytest.raises(FileExistsError, match="holds files already"):
        write_kernel(folder)


def test_kernels_library_loads_it(folder):
    kernels = pytest.importorskip("kernels", reason="pip install kernels")
    from kernels._rust import Build

    assert len(Build.open(folder).general.backends) == 3
    assert_the_packages_own(kernels.get_local_kernel(folder, backend="cpu"))
    assert kernels.get_local_kernel(folder).__version__ == gft_kernels.__version__
