"""mypy lets the functions in the folder of kernels go without types, because Triton's have none of
Python's; its host functions are held to theirs here.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[1] / "gft_kernels" / "engines" / "triton"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def untyped(source: str) -> list[str]:
    """Functions that run on the host and leave a parameter or the result without a type."""
    found = []
    for f in ast.walk(ast.parse(source)):
        if not isinstance(f, FUNCTIONS) or any(ast.unparse(d).startswith("triton.jit") for d in f.decorator_list):
            continue
        a = f.args
        given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        if f.returns is None or any(p.annotation is None for p in given if p.arg not in ("self", "cls")):
            found.append(f.name)
    return found


@pytest.mark.parametrize("path", sorted(KERNELS.rglob("*.py")), ids=lambda path: path.name)
def test_host_functions_beside_kernels_have_types(path):
    assert not untyped(path.read_text())


def test_untyped_functions_are_seen():
    kernel = "@triton.jit\ndef kernel(x_ptr, BLOCK: tl.constexpr): ...\n"
    assert not untyped(kernel + "def host(x: int, *rest: int) -> None: ...")
    assert untyped("def f(x) -> None: ...\ndef g(x: int): ...\ndef h(*rest) -> None: ...") == ["f", "g", "h"]
