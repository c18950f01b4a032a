"""Draw docs/figures/architecture.svg: the data of a call, and the rooms with their files.

    python docs/scripts/draw_architecture.py            draw it
    python docs/scripts/draw_architecture.py --check    exit 1 if the figure is stale

Rooms and files are those of the tree, and a room stands on the rooms that it imports. What a call
passes through (CALL) is written here, and must name files that exist.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIGURE = ROOT / "docs" / "figures" / "architecture.svg"

# A room: its folder, what it is for, its colour. White text is readable on each of them.
ROOMS = {
    "benchmarks": ("benchmarks", "ours and its peers", "#66707c"),
    "gft": ("gft", "the training loop", "#96661c"),
    "ops": ("gft_kernels/ops", "what a caller calls", "#7957a8"),
    "engines": ("gft_kernels/engines", "touch the vocabulary", "#32699f"),
    "losses": ("gft_kernels/losses", "numbers on [N], [B]", "#26785a"),
}
# What a call of linear_policy_loss passes through, in order. Step 7 is one of the three engines.
CALL = {
    "ops/linear_policy_loss": 1,
    "ops/validation": 2,
    "ops/backends": 3,
    "ops/plan": 4,
    "losses/advantages": 5,
    "ops/autograd": 6,
    "engines/eager": 7,
    "engines/chunked": 7,
    "engines/triton": 7,
    "losses/objectives": 8,
    "engines/accumulate": 9,
    "ops/result": 10,
}

VALUES = ("gft_kernels.head", "gft_kernels.parallel")  # under all rooms, and in none

WIDTH, INK = 800, "#7d8590"  # a grey that is readable on white and on black
MONO, SANS = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace", "Helvetica, Arial, DejaVu Sans, sans-serif"
CHAR = 6.65  # pixels of a character of MONO at 11


# The tree


def files(room: str) -> list[str]:
    """Files and folders of a room, those of a call first and in its order; a folder ends with /."""
    paths = [p for p in (ROOT / ROOMS[room][0]).iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    names = [p.stem if p.suffix else f"{p.name}/" for p in paths if not p.name.startswith("_")]
    return sorted(names, key=lambda name: (step(room, name), name))


def step(room: str, name: str) -> int:
    """The place in a call, or one behind all of them."""
    return CALL.get(f"{room}/{name.rstrip('/')}", len(CALL) + 1)


def room_of(module: str) -> str | None:
    """The room that a dotted name lives in; the public names of gft_kernels count as ops."""
    parts = module.split(".")
    if parts[0] == "gft_kernels":
        return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "ops" if len(parts) < 3 else None
    return parts[0] if parts[0] in ROOMS else None


def imports(path: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports from, wherever it does."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *([node.module] if node.module else [])))
            yield from ([stem] if node.module else (f"{stem}.{alias.name}" for alias in node.names))


def below() -> dict[str, set[str]]:
    """Room -> the rooms that its files import."""
    found = {}
    for room, (folder, *_) in ROOMS.items():
        names = (name for path in (ROOT / folder).rglob("*.py") for name in imports(path) if name not in VALUES)
        found[room] = {other for other in map(room_of, names) if other not in (None, room)}
    return found


def check_tree() -> None:
    """Refuse a picture that would not be true.

    Raises:
        ValueError: a file of CALL does not exist, or a room imports one that is drawn above it.
    """
    for name in CALL:
        path = ROOT / "gft_kernels" / name
        if not path.is_dir() and not path.with_suffix(".py").exists():
            raise ValueError(f"CALL names gft_kernels/{name}, which does not exist: mend CALL.")
    order = list(ROOMS)
    for room, others in below().items():
        for other in others:
            if order.index(other) < order.index(room):
                raise ValueError(f"{room} imports {other}, which the picture has above it.")


# Shapes


def text(x: float, y: float, words: str, size: int = 12, anchor: str = "start", bold: bool = False) -> str:
    """Words in grey."""
    return _text(x, y, words, f'font-family="{SANS}" font-size="{size}" fill="{INK}" text-anchor="{anchor}"', bold)


def _text(x: float, y: float, words: str, style: str, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" {style}{weight}>{escape(words)}</text>'


def chip(x: float, y: float, width: float, words: str, colour: str, height: int = 24) -> str:
    """A filled box with a name of the code in it."""
    box = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height}" rx="5" fill="{colour}"/>'
    style = f'font-family="{MONO}" font-size="11" fill="#ffffff" text-anchor="middle"'
    return box + _text(x + width / 2, y + height / 2 + 4, words, style)


def frame(x: float, y: float, width: float, height: float, colour: str = INK) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="{colour}" fill-opacity="0.10" '
        f'stroke="{colour}" stroke-opacity="0.6"/>'
    )


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return (
        f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="{INK}" stroke-width="1.5" '
        'marker-end="url(#head)"/>'
    )


# The two panels


def data_flow(top: float) -> tuple[list[str], float]:
    """Inputs on the left, the pass in the middle, results on the right; and where the panel ends."""
    green, blue, purple = (ROOMS[room][2] for room in ("losses", "engines", "ops"))
    inputs = (
        ("rewards, group_ids", "[B]", "group_advantages", "A"),
        ("mask, sequence_ids", "[N]", "token_weights", "w"),
        ("objective", "a function on [N]", "gft(tau), grpo(), yours", "f"),
        ("hidden, weight, targets", "[N, D]  [V, D]  [N]", "", ""),
    )
    out = [text(2, top + 14, "The data of a call", size=14, bold=True)]
    for row, (given, shape, function, result) in enumerate(inputs):
        y = top + 58 + 46 * row
        out += [text(2, y - 1, given), text(2, y + 14, shape, size=11)]
        out.append(arrow(148, y, 172 if function else 430, y))
        if function:
            out += [chip(178, y - 12, 180, function, green), arrow(364, y, 430, y), text(395, y - 6, result)]
    out += [frame(436, top + 24, 184, 204, purple), chip(446, top + 34, 164, "linear_policy_loss", purple)]
    out.append(text(446, top + 78, "for each chunk of rows:"))
    steps = (
        ("logits \u2192 E, rest", blue),
        ("log p, entropy", blue),
        ("loss, coefficient", green),
        ("gradients", blue),
    )
    out += [chip(458, top + 90 + 33 * row, 140, words, colour) for row, (words, colour) in enumerate(steps)]
    results = (("loss", "a scalar"), ("gradients", "from the same pass"), ("stats", "nll, mean C, counts"))
    for row, (name, words) in enumerate(results):
        y = top + 66 + 56 * row
        out += [arrow(626, y, 654, y), text(662, y + 4, name, bold=True), text(662, y + 20, words, size=11)]
    return out, top + 240


def band(room: str, top: float, left: float) -> tuple[list[str], float]:
    """A room with its files, as many lines of them as it takes; and where the band ends."""
    _, purpose, colour = ROOMS[room]
    start, x, y = left + 138, left + 138, top + 9
    chips = []
    for name in files(room):
        number = step(room, name)
        label = name if number > len(CALL) else f"{number} {name}"
        width = len(label) * CHAR + 14
        if x + width > WIDTH - 12:
            x, y = start, y + 30
        chips.append(chip(x, y, width, label, colour))
        x += width + 6
    height = y + 33 - top
    words = [text(left + 10, top + 20, room, size=13, bold=True), text(left + 10, top + 35, purpose, size=11)]
    return [frame(left, top, WIDTH - 2 * left if left else WIDTH, height, colour), *words, *chips], top + height


def rooms(top: float) -> tuple[list[str], float]:
    """The rooms, each on top of what it imports; and where the panel ends."""
    out = [text(2, top + 14, "The rooms: each imports only rooms below it", size=14, bold=True)]
    out.append(text(WIDTH - 2, top + 14, "numbers: what a call passes through", anchor="end"))
    y, inside, frame_top = top + 26, [], 0.0
    for room, (folder, *_) in ROOMS.items():
        kernels = folder.startswith("gft_kernels")
        if kernels and not frame_top:
            frame_top, y = y, y + 24
        drawn, y = band(room, y, 8 if kernels else 0)
        inside += drawn
        y += 8
    out += [frame(0, frame_top, WIDTH, y - frame_top), text(10, frame_top + 17, "gft_kernels", size=13, bold=True)]
    out.append(text(WIDTH - 10, frame_top + 17, "head.py: the values that all of them share", size=11, anchor="end"))
    return out + inside, y + 2


def svg() -> str:
    """The whole figure.

    Raises:
        ValueError: it would not be true (`check_tree`).
    """
    check_tree()
    flow, y = data_flow(0)
    house, height = rooms(y + 12)
    head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 0 {WIDTH + 2} {height:g}" role="img">',
        "<title>The data of a call, and the rooms of gft-kernels</title>",
        f'<defs>{head}<path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>',
        *flow,
        *house,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    if arguments != ["--check"]:
        FIGURE.parent.mkdir(exist_ok=True)
        FIGURE.write_text(svg(), encoding="utf-8")
        return 0
    if FIGURE.exists() and FIGURE.read_text(encoding="utf-8") == svg():
        return 0
    print(f"{FIGURE.relative_to(ROOT)} is stale: run python docs/scripts/draw_architecture.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
