"""A line chart as inline SVG. Colours are the page's, so that it follows light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from .lines import Line, Point
from .text import escaped

WIDTH, HEIGHT = 420, 244
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40
DASHES = ("", "7 4", "2 4", "10 4 2 4", "4 2", "1 3")
MARKS = ("circle", "square", "triangle", "diamond", "cross", "bar")
DODGE = 2.5  # pixels between the intervals of two lines
MARKED = 40  # points of a line that each have a mark; longer lines have a few
HUES = 8


def number(value: float) -> str:
    """A short number: 0.25, 1.2k, 3e-05."""
    size = abs(value)
    if 1e4 <= size < 1e12:
        for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if size >= unit:
                return f"{value / unit:.3g}{name}"
    return f"{value:.4g}" if size >= 1 else f"{value:.3g}"


def percent(value: float) -> str:
    return f"{100 * value:.2g}%" if 0 < abs(value) < 0.001 else f"{value:.1%}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next((m * unit for m in (1, 2, 2.5, 5) if m * unit >= raw), 10 * unit)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


class Scale:
    """From numbers to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        if not high > low:  # one value: in the middle
            margin = abs(low) / 2 or 0.5
            low, high = low - margin, high + margin
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def chart(
    lines: Sequence[Line],
    title: str,
    *,
    is_share: bool = False,
    is_count: bool = False,
    x_name: str = "updates",
    x_label: Callable[[float], str] = number,
) -> str:
    """The SVG of lines that have a point each, at least.

    A y axis of shares begins at 0, and ends at 1 unless all are below a half. Numbers that spread
    over three decades have a logarithmic one.
    """
    points = [p for line in lines for p in line.points if p.y is not None]
    ys = [y for p in points for y in (p.y, p.low, p.high) if y is not None]
    is_log = not is_share and not is_count and min(ys) > 0 and max(ys) / min(ys) > 1000
    low, high = (math.log10(min(ys)), math.log10(max(ys))) if is_log else _room(min(ys), max(ys), is_share, is_count)
    x = Scale(min(p.x for p in points), max(p.x for p in points), LEFT + 6, WIDTH - RIGHT - 6)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)

    def place(p: Point) -> tuple[float, float]:
        assert p.y is not None
        return x(p.x), y(math.log10(p.y) if is_log else p.y)

    label = (lambda v: f"{100 * v:.3g}%") if is_share else (lambda v: number(10**v)) if is_log else number
    body = [*_grid(x, y, label, x_label, is_whole=x_name != "k")]
    for order, line in enumerate(lines):
        body.append(_line(line, place, y, DODGE * (order - (len(lines) - 1) / 2)))
    name = escaped(f"{title}: {_words(lines, is_share)}")
    axis = f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{escaped(x_name)}</text>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}"><title>{name}</title>'
        f"{''.join(body)}{axis}</svg>"
    )


def _room(low: float, high: float, is_share: bool, is_count: bool) -> tuple[float, float]:
    if is_share and low >= 0 and high <= 1:
        return 0.0, 1.0 if high > 0.5 else max(high * 1.1, 0.01)
    if is_count:
        return 0.0, max(high, 1.0)
    margin = (high - low) * 0.06
    return (0.0 if 0 <= low <= high / 3 else low - margin), high + margin


def _grid(
    x: Scale, y: Scale, y_label: Callable[[float], str], x_label: Callable[[float], str], *, is_whole: bool
) -> Iterator[str]:
    for value in ticks(y.low, y.high):
        at = f"{y(value):.1f}"
        yield f'<path class="grid" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>'
        yield f'<text class="tick" x="{LEFT - 6}" y="{at}" dy=".32em" text-anchor="end">{y_label(value)}</text>'
    marks = [v for v in ticks(x.low, x.high) if v == round(v) and v >= 0]
    for value in marks or [round((x.low + x.high) / 2)]:
        yield (
            f'<text class="tick" x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
            f"{escaped(x_label(value))}</text>"
        )


def _line(line: Line, place: Callable[[Point], tuple[float, float]], y: Scale, shift: float) -> str:
    hue = f'class="h{line.hue % HUES}"'
    dash = DASHES[line.dash % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    bold = line.mean or line.points
    parts = [f'<path class="faint" d="{_path(line.points, place)}"/>'] if line.mean else []
    parts.append(f'<path class="bold"{dashed} d="{_path(bold, place)}"/>')
    drawn = [p for p in bold if p.y is not None]
    parts += [
        _interval(place(p)[0] + shift, y(p.low), y(p.high)) for p in drawn if p.low is not None and p.high is not None
    ]
    every = 1 if len(drawn) <= MARKED and not line.mean else max(1, len(drawn) // 4)
    parts += [mark(line.mark, *place(p)) for p in drawn[::-1][::every]]
    return f"<g {hue}>{''.join(parts)}</g>"


def _interval(x: float, low: float, high: float) -> str:
    return f'<path class="bar" d="M{x:.1f} {low:.1f}V{high:.1f}m-2.5 0h5M{x - 2.5:.1f} {low:.1f}h5"/>'


def _path(points: Sequence[Point], place: Callable[[Point], tuple[float, float]]) -> str:
    """A path with a gap wherever there is no value; a lone point is a dot."""
    parts, is_open = [], False
    for p in points:
        if p.y is None:
            is_open = False
            continue
        a, b = place(p)
        parts.append(f"{'L' if is_open else 'M'}{a:.1f} {b:.1f}" + ("" if is_open else "h0"))
        is_open = True
    return "".join(parts)


def mark(shape: int, x: float, y: float, size: float = 3.2) -> str:
    """A mark that tells lines apart without colour."""
    kind, s = MARKS[shape % len(MARKS)], size
    if kind == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{s}"/>'
    path = {
        "square": f"M{x - s:.1f} {y - s:.1f}h{2 * s}v{2 * s}h{-2 * s}z",
        "triangle": f"M{x:.1f} {y - s * 1.2:.1f}l{s * 1.2} {s * 2.1}h{-s * 2.4}z",
        "diamond": f"M{x:.1f} {y - s * 1.4:.1f}l{s * 1.4} {s * 1.4}l{-s * 1.4} {s * 1.4}l{-s * 1.4} {-s * 1.4}z",
        "cross": f"M{x - s:.1f} {y - s:.1f}l{2 * s} {2 * s}m0 {-2 * s}l{-2 * s} {2 * s}",
        "bar": f"M{x:.1f} {y - s * 1.4:.1f}v{2.8 * s}",
    }[kind]
    return f'<path class="mark" d="{path}"/>'


def swatch(line: Line) -> str:
    """A piece of the line for the legend."""
    dash = DASHES[line.dash % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true"><g class="h{line.hue % HUES}">'
        f'<path class="bold"{dashed} d="M1 6H33"/>{mark(line.mark, 17, 6)}</g></svg>'
    )


def _words(lines: Sequence[Line], is_share: bool) -> str:
    """First and last value of every line, for those who do not see the picture."""
    show = percent if is_share else number
    found = []
    for line in lines:
        ys = [p.y for p in line.points if p.y is not None]
        found.append(
            f"{line.label} from {show(ys[0])} to {show(ys[-1])}" if len(ys) > 1 else f"{line.label} {show(ys[0])}"
        )
    return "; ".join(found)
