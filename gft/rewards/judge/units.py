"""Units, by name: of which dimension they are, and how many base units they hold."""

from __future__ import annotations

import re
from fractions import Fraction

from .values import Unit

# dimension: {names, the base unit's first: how many base units}. Names are in the singular.
_TABLE: dict[str, dict[str, str]] = {
    "length": {
        **{"m meter metre": "1", "cm centimeter centimetre": "1/100", "mm millimeter millimetre": "1/1000"},
        **{"km kilometer kilometre": "1000", "in inch inche": "127/5000", "ft foot feet": "381/1250"},
        **{"yd yard": "1143/1250", "mi mile": "201168/125"},
    },
    "mass": {"g gram": "1", "kg kilogram": "1000", "mg milligram": "1/1000", "tonne": "1000000"},
    "time": {
        **{"s sec second": "1", "ms millisecond": "1/1000", "min minute": "60", "h hr hour": "3600"},
        **{"day": "86400", "week": "604800"},
    },
    "length^3": {"l liter litre": "1/1000", "ml milliliter millilitre": "1/1000000"},
    "money": {"dollar": "1", "cent": "1/100"},
    "count": {
        **{"": "1", "percent": "1/100", "dozen": "12", "hundred": "100", "thousand": "1000"},
        **{"million": "1000000", "billion": "1000000000", "trillion": "1000000000000"},
    },
    "angle": {"degree deg": "1"},
}
UNITS: dict[str, Unit] = {
    alias: Unit(names.split()[0] if names else "", dimension, Fraction(factor), True)
    for dimension, units in _TABLE.items()
    for names, factor in units.items()
    for alias in names.split() or [""]
}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cubed": 3}
_SPELLINGS = {"L": "l", "mL": "ml", "percentage": "percent", "hrs": "hour", "mins": "minute", "secs": "second"}


def named(word: str) -> Unit | None:
    """The unit of that name, in the singular or plural."""
    word = _SPELLINGS.get(word, word)
    if len(word) > 2:  # Mg is not mg
        word = word.lower()
    return UNITS.get(word) or (UNITS.get(word.removesuffix("s")) if len(word) > 3 else None)


def unit_of(words: str) -> Unit:
    """The unit that "square cm", "cm ^ 2", "miles per hour" or "apples" stands for."""
    above, *below = (part.split() for part in re.split(r"/|\bper\b", words))
    units = [_power(above), *map(_power, below)]
    if len(units) > 2 or not all(unit.known for unit in units):
        name = " ".join(word.lower().removesuffix("s") for word in words.split())
        return Unit(name, name, Fraction(1), False)
    if len(units) == 1:
        return units[0]
    one, other = units
    return Unit(f"{one.name}/{other.name}", f"{one.dimension}/{other.dimension}", one.factor / other.factor, True)


def _power(words: list[str]) -> Unit:
    """A unit or a power of one, from its words; unknown where they are anything else."""
    exponent = 1
    names = list(words)
    for word in words:
        if word in _POWERS:
            exponent *= _POWERS[word]
            names.remove(word)
    if len(names) == 3 and names[1] == "^" and names[2] in ("2", "3"):
        exponent, names = int(names[2]), names[:1]
    unit = named(names[0]) if len(names) == 1 else None
    if unit is None:
        name = " ".join(names)
        return Unit(name, name, Fraction(1), False)
    if exponent == 1:
        return unit
    return Unit(f"{unit.name}^{exponent}", f"{unit.dimension}^{exponent}", unit.factor**exponent, True)
