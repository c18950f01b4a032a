"""Import directions inside gft:
answers, stop < data < rewards < the loop < demo < commands < cli < __main__.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

import gft

ROOT = Path(gft.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# What a file or folder at the top of gft may import of gft besides itself. The others are the loop:
# they may import everything but what is above it.
MAY_IMPORT = {
    "answers": set(),
    "stop": set(),
    "data": {"answers"},
    "rewards": {"answers", "data", "stop"},
}
ABOVE_THE_LOOP = {"demo", "commands", "cli", "__main__"}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, inside functions and for types as well."""
    package = ".".join(("gft", *path.relative_to(ROOT).parts[:-1]))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms(names: Iterator[str]) -> set[str]:
    """The parts of gft that the names belong to."""
    return {name.split(".")[1] for name in names if name.startswith("gft.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    part = part_of(path)
    found = rooms(imports(path)) - {part}
    if part in MAY_IMPORT:
        assert found <= MAY_IMPORT[part]
    elif part not in ABOVE_THE_LOOP:
        assert not found & ABOVE_THE_LOOP


def test_imports_are_seen(tmp_path, monkeypatch):
    """The test above rests on this: every form of import is resolved, wherever it stands."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "data" / "files.py"
    path.parent.mkdir()
    path.write_text("from ..demo import compare\nfrom .formats import Row\ndef f():\n    import gft.cli, torch\n")
    assert sorted(imports(path)) == ["gft.cli", "gft.data.formats.Row", "gft.demo.compare", "torch"]
    assert rooms(imports(path)) == {"cli", "data", "demo"}
