"""What the pages show is true: their code runs, their links and paths lead to files, their numbers
are those of their tables.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from gft.settings.config import EvaluateConfig, TrainConfig

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
README = ROOT / "README.md"
README_LINES = 120
PROSE = 100  # columns
TOP = {path.name for path in ROOT.iterdir() if path.is_dir()}
SUFFIXES = (".py", ".md", ".csv", ".svg", ".toml", ".cff", ".yaml")
MADE_BY_RUNS = ("runs/", "models/")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_of_a_page_runs(page, monkeypatch, fresh_accelerate):
    """The blocks of a page run in order, as a reader would paste them into one session."""
    monkeypatch.chdir(ROOT)
    session = {"__name__": "page"}
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{name_of(page)}, block {number}", "exec"), session)


def test_pages_show_python():
    assert {"README.md", "CONTRIBUTING.md", "docs/method.md"} <= {name_of(p) for p in PAGES if blocks(p, "python")}


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)}


def dead_links(page: Path) -> list[str]:
    """Links to files that are not there, or to headings that their page does not have."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and (target.suffix != ".md" or anchor not in anchors(target))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    assert not dead_links(page)


def test_dead_links_are_seen(tmp_path):
    (tmp_path / "there.md").write_text("# A `heading`, of two\n")
    page = tmp_path / "page.md"
    good = "[a](there.md) [b](there.md#a-heading-of-two) [c](#here) [d](https://x.org/y)"
    page.write_text(f"## Here\n{good} [e](gone.md) [f](there.md#gone) [g](#gone)\n")
    assert dead_links(page) == ["gone.md", "there.md#gone", "#gone"]


def missing_paths(page: Path) -> list[str]:
    """Paths in backticks that the tree does not have."""
    missing = []
    for word in re.findall(r"`([\w.\-]+(?:/[\w.\-]+)*/?)`", prose(page)):
        is_path = "/" in word and (word.split("/")[0] in TOP or word.endswith(("/", *SUFFIXES)))
        if is_path and not word.startswith(MADE_BY_RUNS) and not (ROOT / word).exists():
            missing.append(word)
    return missing


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=name_of)
def test_paths_in_backticks_exist(page):
    assert not missing_paths(page)


def test_missing_paths_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "`gft/train.py` `gft/gone.py` `tests/gone/` `a / b` `float/int` `runs/demo/curves.png` `gone/x.py`\n"
    )
    assert missing_paths(page) == ["gft/gone.py", "tests/gone/", "gone/x.py"]


def flags(config: type) -> set[str]:
    """Command-line flags of a configuration, its parts without prefixes."""
    found: set[str] = set()
    for field in fields(config):
        part = getattr(field, "default_factory", None)
        found |= flags(part) if is_dataclass(part) else {f"--{field.name.replace('_', '-')}"}
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_of_the_command_exist(page):
    known = {"train": flags(TrainConfig), "eval": flags(EvaluateConfig)}
    for command, options in re.findall(r"gft (train|eval)((?: +[^\s`]+)*)", page.read_text(encoding="utf-8")):
        unknown = set(re.findall(r"--[a-z-]+", options)) - known[command] - {"--help"}
        assert not unknown


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "reference.md"], ids=name_of)
def test_prose_wraps(page):
    by_hand = re.sub(r"<!-- ([\w-]+) -->.*?<!-- end -->", "", prose(page), flags=re.DOTALL)  # not what rows fill
    lines = by_hand.splitlines()
    assert not [line for line in lines if len(line) > PROSE and not line.startswith(("|", "!", "    ", "<!--"))]


def test_readme_is_short():
    assert README.read_text(encoding="utf-8").count("\n") <= README_LINES


def test_readme_number_is_that_of_its_table():
    text = README.read_text(encoding="utf-8")
    (claim,) = re.findall(r"\*\*([\d.]+)x as fast as eager logits in ([\d.]+)x of their memory\*\*", text)
    rows = dict(re.findall(r"^\| (eager logits|\*\*gft-kernels\*\*, exact) \|(.*)\|$", text, flags=re.MULTILINE))
    eager, ours = ([float(x) for x in re.findall(r"([\d.]+) (?:ms|MiB)", row)] for row in rows.values())
    assert claim == (f"{eager[0] / ours[0]:.1f}", f"{ours[1] / eager[1]:.2f}")
    (about,) = re.findall(
        r"float32\s+on 2 CPU threads.*?(\d+) tokens,\s+hidden size (\d+), vocabulary (\w+)", text, re.DOTALL
    )
    assert f"{about[0]} tokens, hidden size {about[1]}, vocabulary {about[2]}, float32" in " ".join(text.split())
