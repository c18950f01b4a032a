"""Write docs/reference.md from the signatures and docstrings of the public names.

python docs/scripts/make_reference.py            write the page
python docs/scripts/make_reference.py --check    exit 1 if the page is stale
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the tree's own package, not an installed one

import gft_kernels  # noqa: E402
from gft_kernels import parallel  # noqa: E402
from gft_kernels.integrations import hf  # noqa: E402

PAGE = ROOT / "docs" / "reference.md"
HEADER = """# Reference

Every public name, with its signature and docstring. N tokens, D hidden size, V vocabulary,
B sequences, K active rows: [the letters](architecture.md#the-letters). This page is written by
[make_reference.py](scripts/make_reference.py): mend the docstring, not the page.
"""
CHAPTERS = {
    "ops": "Ops",
    "head": "Values",
    "losses": "Losses",
    "parallel": "Parallel heads",
    "integrations": "Integrations",
}
ELSEWHERE = {  # public too, but imported from a module of their own
    name: getattr(module, name)
    for module, names in ((parallel, parallel.__all__), (hf, [name for name in hf.__all__ if name != "HeadParts"]))
    for name in names
}

Definition = ast.FunctionDef | ast.ClassDef


def public() -> dict[str, Any]:
    """Public names and what they name: by chapter, then as they stand in their files."""
    found = {name: getattr(gft_kernels, name) for name in gft_kernels.__all__} | ELSEWHERE
    order = list(CHAPTERS)
    place = {name: (order.index(chapter(x)), x.__module__, definition(x)[0].lineno) for name, x in found.items()}
    return {name: found[name] for name in sorted(found, key=place.__getitem__)}


def chapter(thing: Any) -> str:
    """The room of gft_kernels that a thing lives in."""
    return thing.__module__.split(".")[1]


def definition(thing: Any) -> tuple[Definition, str]:
    """Where a function or class is defined, and the source around it."""
    source = Path(inspect.getfile(thing)).read_text(encoding="utf-8")
    (node,) = (n for n in ast.parse(source).body if getattr(n, "name", None) == thing.__name__)
    assert isinstance(node, Definition)
    return node, source


# What a caller may write


def declaration(thing: Any, name: str) -> str:
    """The signature of a function, of an objective and of a module, or the fields of a value."""
    node, source = definition(thing)
    if isinstance(node, ast.FunctionDef):
        return signature(node, source, name)
    if name.islower():  # an objective: a class by the name of a function
        return f"{name}{inspect.signature(thing)}".replace(" -> None", "").replace("'", "")
    methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
    if "forward" in methods:
        return "\n\n".join(
            signature(methods[method], source, called).replace("    self,\n", "").replace(" -> None", "")
            for method, called in {"__init__": name, "forward": "forward"}.items()
        )
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    ends = [*(n.lineno - 1 for n in fields[1:]), fields[-1].end_lineno or 0]
    return "\n".join(
        [f"{name}(", *(as_argument(lines(source, n.lineno, end)) for n, end in zip(fields, ends, strict=True)), ")"]
    )


def signature(function: ast.FunctionDef, source: str, name: str) -> str:
    """The signature as it is written, shapes in its comments and all, under a name."""
    written = lines(source, function.lineno, function.body[0].lineno - 1)
    written = written.replace(f"def {function.name}(", f"{name}(", 1)
    return re.sub(r":(\s*# [^\n]*)?\Z", r"\1", written)


def lines(source: str, first: int, last: int) -> str:
    """Lines of a source, moved to the left, without remarks to linters."""
    taken = "\n".join(source.splitlines()[first - 1 : last])
    return textwrap.dedent(re.sub(r"\s*# (noqa|type:).*", "", taken)).strip()


def as_argument(field: str) -> str:
    """A field as one line of an argument list."""
    field = re.sub(r"\[\n\s*(.*?)\n\s*\]", r"[\1]", field, flags=re.DOTALL)
    code, mark, comment = field.partition("  # ")
    return f"    {code},{mark}{comment}"


# What its docstring says


def prose(docstring: str) -> str:
    """A docstring as Markdown: arguments and errors become lists, code becomes blocks."""
    docstring = re.sub(r"\n(?=(Cost|Source|Args|Returns|Raises):)", "\n\n", docstring)
    return "\n\n".join(map(paragraph, re.split(r"\n{2,}(?=\S)", docstring)))


def paragraph(part: str) -> str:
    if "::\n" in part:
        lead, _, code = part.partition("::\n")
        return f"{fill(lead)}:\n\n```text\n{inspect.cleandoc(code)}\n```"
    title, _, rest = part.partition(":\n")
    if title == "Args":
        entries = re.split(r"\n(?=\S)", inspect.cleandoc(rest))
        return "Arguments:\n\n" + "\n".join(map(item, entries))
    if title == "Raises":
        entries = re.split(r"\s(?=\w+Error: )", inspect.cleandoc(rest))
        return "Raises:\n\n" + "\n".join(map(item, entries))
    return fill(f"Returns {rest.lstrip()}" if title == "Returns" else part)


def item(entry: str) -> str:
    """`name, name: text` as an item of a list."""
    names, _, rest = entry.partition(": ")
    marked = ", ".join(f"`{name.strip()}`" for name in names.split(","))
    return textwrap.fill(" ".join(f"* {marked}: {rest}".split()), 100, subsequent_indent="  ", **UNBROKEN)


UNBROKEN: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


def fill(words: str) -> str:
    return textwrap.fill(" ".join(words.split()), 100, **UNBROKEN)


# The page


def entry(name: str, thing: Any) -> str:
    """The section of one name."""
    node, _ = definition(thing)
    path = Path(inspect.getfile(thing)).relative_to(ROOT)
    home = f"`from {hf.__name__ if name in ELSEWHERE else 'gft_kernels'} import {name}`"
    return (
        f"### {name}\n\n{home}, in [{path}](../{path})\n\n"
        f"```text\n{declaration(thing, name)}\n```\n\n{prose(ast.get_docstring(node) or '')}\n"
    )


def page() -> str:
    parts, last = [HEADER], ""
    for name, thing in public().items():
        if chapter(thing) != last:
            last = chapter(thing)
            parts.append(f"## {CHAPTERS[last]}\n")
        parts.append(entry(name, thing))
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    if arguments != ["--check"]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE.relative_to(ROOT)} is stale: run python docs/scripts/make_reference.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
