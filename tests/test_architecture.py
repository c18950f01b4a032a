"""Layers, sizes and docstrings: what the architecture page promises, held by tests."""

from __future__ import annotations

import ast
import importlib
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import gft_kernels

ROOT = Path(__file__).parents[1]
FILE_LINES, FUNCTION_LINES, PARAMETERS = 300, 60, 10
LOOP_LINES = 200  # of the training loop, with its comments
PROSE, SKIPS = 100, 20  # columns of docstrings and comments, and `fmt: skip`s in the tree; ruff holds lines to 120
KERNEL_LINES, KERNEL_PARAMETERS = 100, 40  # a kernel takes one pointer a tensor, and its constants one by one
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# Rooms of gft_kernels, lowest first, and the floors inside a room: a file imports lower ones only.
# A new file needs a place here.
FLOORS = (
    "losses/objectives losses/advantages losses/reductions losses/sequences parallel",
    "losses/ratios head",
    "engines/accumulate",
    "engines/contract engines/columns engines/shard",
    "engines/eager engines/sparse_report",
    "engines/sparse",
    "engines/chunked engines/triton",
    "ops/agreement ops/backends ops/refusals",
    "ops/validation",
    "ops/plan ops/result ops/logits_validation",
    "ops/sequences",
    "ops/autograd",
    "ops/compile",
    "ops/linear_logprob ops/linear_policy_loss ops/logits_policy_loss",
    "__init__ env integrations",
    "check",
)
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts.split()}
ROOMS = ("losses", "engines", "ops")
FOREIGN = {"gft", "transformers", "trl", "verl", "axolotl", "swift", "prime_rl", "benchmarks", "tests"}

SOURCES = [
    path
    for folder in ("gft_kernels", "gft", "benchmarks", "hub", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
KERNELS = [path for path in SOURCES if path.is_relative_to(ROOT / "gft_kernels")]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run at import: everything outside function bodies."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, FUNCTIONS):
            yield node
            yield from module_level(node)


def imported(path: Path, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Absolute dotted names of what the nodes import."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *([node.module] if node.module else [])))
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str:
    """The part of gft_kernels that a dotted name belongs to, as FLOORS names it.

    In a room it is a file or folder, elsewhere the file or folder at the top.
    """
    parts = name.split(".")[1:]
    return "/".join(parts[: 2 if parts[0] in ROOMS else 1])


@pytest.mark.parametrize("path", KERNELS, ids=name_of)
def test_gft_kernels_imports_go_down(path):
    if path.name == "__init__.py" and path.parent.name in ROOMS:
        assert not list(imported(path, ast.walk(ast.parse(path.read_text())))), (
            "the door of a room imports nothing: a name has one home"
        )
        return
    part = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert part in FLOOR_OF, f"{name_of(path)} has no floor: add it to FLOORS"
    for name in imported(path, ast.walk(ast.parse(path.read_text()))):
        if name.startswith("gft_kernels."):
            other = part_of(name)
            assert other == part or FLOOR_OF.get(other, 99) < FLOOR_OF[part], (
                f"{name_of(path)} imports {name}, which is not below it"
            )


@pytest.mark.parametrize("path", KERNELS, ids=name_of)
def test_gft_kernels_imports_what_exists(path):
    # Imports inside functions too: nobody runs some of them without a GPU.
    for name in imported(path, ast.walk(ast.parse(path.read_text()))):
        if name.startswith("gft_kernels."):
            places = [ROOT.joinpath(*parts) for parts in (name.split("."), name.split(".")[:-1])]
            found = any(place.is_dir() or place.with_suffix(".py").exists() for place in places)
            assert found, f"{name_of(path)} imports {name}: there is no such module"


@pytest.mark.parametrize("path", KERNELS, ids=name_of)
def test_gft_kernels_stands_alone(path):
    found = {name.split(".")[0] for name in imported(path, module_level(ast.parse(path.read_text())))}
    # A folder of integrations is a library's own: its classes are subclasses of that library's.
    allowed = {path.parent.name} if path.parents[1].name == "integrations" else set()
    assert not found & FOREIGN - allowed


def test_imports_are_seen_by_the_layer_check():
    # The checks above rest on this. Both forms of import are resolved, and those inside functions
    # are told apart.
    path = ROOT / "gft_kernels" / "head.py"
    tree = ast.parse("from .ops.plan import x\nfrom .engines import chunked\nimport trl\ndef f():\n    import verl\n")
    everywhere = ["gft_kernels.ops.plan.x", "gft_kernels.engines.chunked", "trl", "verl"]
    assert sorted(imported(path, ast.walk(tree))) == sorted(everywhere)
    assert sorted(imported(path, module_level(tree))) == sorted(everywhere[:3])


def is_kernel(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in function.decorator_list)


def code_lines(function: ast.FunctionDef) -> int:
    """Lines of a function, its docstring apart."""
    first = function.body[0]
    is_docstring = ast.get_docstring(function) is not None
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if is_docstring else 0)


def test_the_loop_is_a_first_read():
    assert (ROOT / "gft" / "train.py").read_text().count("\n") < LOOP_LINES


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_sources_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES
    functions = [f for f in ast.walk(ast.parse(text)) if isinstance(f, FUNCTIONS)]
    long = {
        f.name: code_lines(f) for f in functions if code_lines(f) > (KERNEL_LINES if is_kernel(f) else FUNCTION_LINES)
    }
    assert not long


def public_functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, FUNCTIONS) and (not node.name.startswith("_") or node.name == "__init__"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)


@pytest.mark.parametrize("path", KERNELS, ids=name_of)
def test_public_functions_take_ten_parameters_at_most(path):
    for function in public_functions(ast.parse(path.read_text())):
        a = function.args
        names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs) if p.arg not in ("self", "cls", "ctx")]
        assert len(names) <= (KERNEL_PARAMETERS if is_kernel(function) else PARAMETERS), (
            f"{function.name}({', '.join(names)})"
        )


@pytest.mark.parametrize("name", gft_kernels.__all__)
def test_public_names_have_a_docstring(name):
    # Read from the source, because dataclasses and NamedTuples make up a docstring where none is
    # written.
    thing = getattr(gft_kernels, name)
    tree = ast.parse(Path(importlib.import_module(thing.__module__).__file__).read_text())
    (node,) = (n for n in tree.body if isinstance(n, (*FUNCTIONS, ast.ClassDef)) and n.name == thing.__name__)
    assert ast.get_docstring(node)


def is_prose(line: str) -> bool:
    """Words, not a formula or a table (two spaces in a row) nor an address."""
    return "  " not in line.strip() and "://" not in line


def docstring_prose(node: ast.AST, lines: list[str]) -> Iterator[int]:
    """Line numbers of a docstring's prose; the block after "::" is code."""
    text = node.body[0]
    code_under = None  # the indentation of the line that opened a block of code
    for number in range(text.lineno, text.end_lineno + 1):
        line = lines[number - 1]
        indentation = len(line) - len(line.lstrip())
        if line.strip() and code_under is not None and indentation <= code_under:
            code_under = None
        if code_under is None:
            yield number
            if line.rstrip().endswith("::"):
                code_under = indentation


def prose(text: str) -> Iterator[tuple[int, str]]:
    """(line number, line) of docstrings and of comments that have a line of their own."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Module)) and ast.get_docstring(node) is not None:
            yield from ((number, lines[number - 1]) for number in docstring_prose(node, lines))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            yield token.start[0], token.line.rstrip()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_prose_wraps_at_100_columns(path):
    long = [f"{number}: {line}" for number, line in prose(path.read_text()) if len(line) > PROSE and is_prose(line)]
    assert not long, "\n".join(long)


def test_prose_is_seen_by_the_column_check():
    comment, code, wide = (f"{start} " + "word " * 21 for start in ("#", "    x =", '"""'))
    text = f'{wide}\n\nEquivalent to::\n\n{code}\n\n"""\n{comment}\ny = 1  {comment}\nz = """\n{wide[3:]}"""\n'
    assert [number for number, line in prose(text) if len(line) > PROSE and is_prose(line)] == [1, 8]


@pytest.mark.parametrize("path", KERNELS, ids=name_of)
def test_docstrings_begin_with_one_line(path):
    tree = ast.parse(path.read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Module))]
    texts = [text for node in nodes if (text := ast.get_docstring(node))]
    assert not [text for text in texts if text.partition("\n")[2].partition("\n")[0].strip()]


def test_formatting_is_almost_never_skipped():
    skipped = {name_of(path): count for path in SOURCES if (count := path.read_text().count("# fmt: " + "skip"))}
    assert sum(skipped.values()) <= SKIPS, skipped
