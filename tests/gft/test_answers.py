"""Answers in texts: only a marked one counts, and a number is exact or refused."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gft.answers import final_answer, marked_number, parse_number, without_calculator


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("6 * 7\n#### 42", "42"),
        ("6 * 7\n####42  \n\n", "42"),
        ("#### 1\nso\n#### 2", "2"),
        ("#### 42</s>", "42"),
        ("#### 42<|im_end|>\n</s> \n", "42"),
        ("#### 42</s>7", "42</s>7"),
        ("#### 42 </S>", "42 </S>"),
        (r"\boxed{1} or \boxed{42}.", "42"),
        (r"\boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{(0, 1\}}.", r"(0, 1\}"),  # an escaped brace closes nothing
        (r"\boxed{7}" + "\n#### 42", "42"),
        (r"#### \boxed{42}", "42"),
        ("the answer is 42", None),
        ("#### 42\nor perhaps 43", None),  # not on the last line: the text went on
        ("so #### 42", None),
        (r"\boxed{42", None),  # cut
        (r"\boxed{1} \boxed{42", None),
        ("", None),
        ("####", ""),
    ],
)
def test_final_answer_takes_only_marked_answers(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 42", "42"),
        ("6 * 7\n####1,234.50 \n\n", "1234.50"),
        ("#### $7", "$7"),
        ("42", None),
        ("#### 42\nor 43", None),
        ("####\n42", None),  # the line of the marker is not the last: `final_answer` would not read it either
        ("#### many", None),
        ("#### 4 2", None),
        ("####", None),
    ],
)
def test_marked_number_takes_only_a_number_on_the_last_line(text, number):
    assert marked_number(text) == number
    assert number is None or parse_number(number) == parse_number(final_answer(text))


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


def test_without_calculator_leaves_the_rest_of_the_text():
    assert without_calculator("48/2 = <<48/2=24>>24 < 30 >> 1") == "48/2 = 24 < 30 >> 1"
