"""Answers in texts: only a marked one counts, and a number is exact or refused."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from gft.answers import (
    final_answers,
    is_missing,
    is_number,
    marked_number,
    number_text,
    parse_number,
    without_calculator,
)


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("6 * 7\n#### 42", ["42"]),
        ("6 * 7\n####42  \n\n", ["42"]),
        ("#### 1\nso\n#### 2", ["2"]),
        (r"\boxed{1} or \boxed{42}.", ["1", "42"]),
        (r"\boxed{42}, so \boxed {42}", ["42"]),
        (r"\boxed{\frac{1}{2}} it is", [r"\frac{1}{2}"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{(0, 1\}}.", [r"(0, 1\}"]),  # an escaped brace closes nothing
        (r"\boxed{x = \boxed{42}}", ["42"]),
        (r"\boxed{1 and \boxed{42}", ["42"]),  # the last box is closed
        (r"\boxed{7}" + "\n#### 42", ["42"]),
        (r"#### \boxed{42}", ["42"]),
        ("the answer is 42", []),
        ("#### 42\nor perhaps 43", []),  # not on the last line: the text went on
        ("so #### 42", []),
        (r"\boxed{42", []),  # cut
        (r"\boxed{1} \boxed{42", []),
        (r"\boxed{" * 20_000, []),  # in linear time
        ("} {" + r"\boxed{42}", ["42"]),
        (r"\boxed{}", [""]),
        ("", []),
        ("####", [""]),
        ("#### 42</s>", ["42"]),
        ("#### 42<|im_end|>\n</s> \n", ["42"]),
        ("#### 42</s>7", ["42</s>7"]),
        ("#### 42 </S>", ["42 </S>"]),
    ],
)
def test_final_answers_takes_only_marked_answers(text, answers):
    assert final_answers(text) == tuple(answers)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 42", "42"),
        ("6 * 7\n####1,234.50 \n\n", "1234.50"),
        ("#### $7", "$7"),
        ("42", None),
        ("#### 42\nor 43", None),
        ("####\n42", None),  # the line of the marker is not the last: `final_answers` would not read it either
        ("#### many", None),
        ("#### 4 2", None),
        ("####", None),
    ],
)
def test_marked_number_takes_only_a_number_on_the_last_line(text, number):
    assert marked_number(text) == number
    assert number is None or parse_number(number) == parse_number(*final_answers(text))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        (" -1,234.50. ", Fraction("-1234.5")),
        ("$7", 7),
        (r"\$1,000,000", 1000000),
        ("3/4", Fraction(3, 4)),
        (".5", Fraction(1, 2)),
        ("+6.", 6),
        ("0.1", Fraction(1, 10)),
    ],
)
def test_parse_number_is_exact(text, number):
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "text",
    ["", "12%", "1e9", "1,2", "12,34", "1/0", "1.5/2", "7 apples", "--1", "nan", "inf", "٣", "9" * 5000, "1 000"],
)
def test_parse_number_refuses_anything_else(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (42, "42"),
        (42.0, "42"),
        (-1.5, "-1.5"),
        (0.1, "0.1"),
        (1e-05, "0.00001"),
        (1e16, "10000000000000000"),
        (1e22, "1" + "0" * 22),
        (-0.0, "0"),
        (2**53 + 1, "9007199254740993"),
        (10**100, "1" + "0" * 100),
        (Decimal("1234.50"), "1234.5"),
        (Decimal("1E+3"), "1000"),
        (np.int64(7), "7"),
        (np.float32(0.1), "0.1"),
        (np.float64(1e16), "10000000000000000"),
    ],
)
def test_number_text_is_the_number_as_people_write_it(value, text):
    assert is_number(value)
    assert number_text(value) == text
    assert parse_number(text) == Fraction(str(value))


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300, pytest.param(10**5000, id="long"), Decimal("1E-500")])
def test_number_text_refuses_what_no_answer_equals(value):
    with pytest.raises(ValueError, match=r"no answer equals|more than 200 digits"):
        number_text(value)


def test_is_missing_takes_the_nan_of_every_number():
    assert all(is_missing(number_text(value)) for value in (math.nan, Decimal("nan"), np.float32("nan")))
    assert all(map(is_missing, ("nan", " NaN ")))
    assert not any(map(is_missing, ("0", "banana", "", None, ["nan"])))


def test_is_number_takes_no_bool():
    assert not any(map(is_number, (True, np.bool_(True), "1", None, 1j, [1])))


def test_without_calculator_leaves_the_rest_of_the_text():
    assert without_calculator("48/2 = <<48/2=24>>24 < 30 >> 1") == "48/2 = 24 < 30 >> 1"
