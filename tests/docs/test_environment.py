"""docs/environment.md names every environment variable of the code, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("gft_kernels", "gft", "benchmarks", "tests", "examples", "docs")
OURS = re.compile(r"\b(?:GFT_[A-Z][A-Z0-9_]*|TRITON_INTERPRET)\b")
NAME = re.compile(r"[A-Z][A-Z0-9_]+")


def is_environment(node: ast.AST) -> bool:
    """os.environ, or a way to look into it."""
    return "environ" in ast.unparse(node) or (isinstance(node, ast.Attribute) and node.attr == "getenv")


def variables(source: str) -> Iterator[str]:
    """Names that a file looks up in the environment, sets there, or hands to a child process."""
    for node in ast.walk(ast.parse(source)):
        places: list[ast.AST | None] = []
        if isinstance(node, ast.Subscript) and is_environment(node.value):
            places = [node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_environment(node.func):
            places = list(node.args[:1])
        elif isinstance(node, ast.Compare) and any(map(is_environment, node.comparators)):
            places = [node.left]
        elif isinstance(node, ast.Dict) and any(
            k is None and is_environment(v) for k, v in zip(node.keys, node.values, strict=True)
        ):
            places = list(node.keys)
        for place in places:
            if isinstance(place, ast.Constant) and isinstance(place.value, str) and NAME.fullmatch(place.value):
                yield place.value


def of_the_code() -> set[str]:
    here = Path(__file__)
    sources = [p.read_text() for f in FOLDERS for p in sorted((ROOT / f).rglob("*.py")) if p != here]
    found = {name for source in sources for name in variables(source)}
    found |= {name for source in sources for name in OURS.findall(source) if not name.endswith("_")}
    return found | set(re.findall(r"^([A-Z]+) \?=", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def of_the_page() -> set[str]:
    text = (ROOT / "docs" / "environment.md").read_text()
    first_cells = re.findall(r"^\| (`[^|]+`) \|", text, flags=re.MULTILINE)
    return {name for cell in first_cells for name in re.findall(r"`([A-Z][A-Z0-9_]+)`", cell)}


def test_page_names_the_variables_of_the_code():
    assert of_the_code() == of_the_page()


def test_variables_are_seen_however_they_are_read():
    source = """
import os
os.environ["A_ONE"], os.environ.get("A_TWO"), os.getenv("A_THREE"), "A_FOUR" in os.environ
os.environ.setdefault("A_FIVE", "1")
child = {**os.environ, "A_SIX": "1"}
other = {"NOT_ONE": 1}["NOT_ONE"]
"""
    assert sorted(variables(source)) == ["A_FIVE", "A_FOUR", "A_ONE", "A_SIX", "A_THREE", "A_TWO"]
