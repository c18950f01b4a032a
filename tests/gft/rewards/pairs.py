"""What the rewards "math" and "number" make of pairs whose truth needs no judgement.

1: right. 0: wrong. None: it may be meant for either, and is counted as a failure. The pairs of
pairs.tsv are for "math"; here are those that a line of text cannot hold.
"""

from __future__ import annotations

from pathlib import Path

Pair = tuple[str, str, int | None]  # solution, answer or response, reward

REWARDS = {"right": 1, "wrong": 0, "doubt": None}


def math_pairs() -> list[Pair]:
    """Solutions and answers, without their box."""
    lines = Path(__file__).with_name("pairs.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(solution, answer, REWARDS[verdict]) for verdict, solution, answer in rows] + HOSTILE


HOSTILE: list[Pair] = [
    ("1234", "1\u202f234", 1),
    ("1234", "1\xa0234", 1),
    ("42", "", 0),
    ("42", " \n", 0),
    ("42", "{" * 300 + "42" + "}" * 300, None),
    ("42", "4" * 10_000, None),
    ("42", "(" * 900, None),
    ("42", "x," * 400 + "x", None),
    ("42", "42\x00", None),
]

NUMBER: list[Pair] = [
    ("42", "#### 42", 1),
    ("42", "6 * 7\n#### 42  \n\n", 1),
    ("42", "#### 42\n \t", 1),
    ("42", "####42", 1),
    ("42", "#### 43", 0),
    ("42", "#### 42.0", 1),
    ("42", "#### $42.", 1),
    ("5", "#### 5.", 1),
    ("5", "#### -5", 0),
    ("-5", "#### \u22125", 1),
    ("1234.5", "#### $1,234.50", 1),
    ("1234", r"so \boxed{1,234}", 1),
    ("1234", "The answer is 1,234.", 0),
    ("42", "it is 42", 0),
    ("42", "42", 0),
    ("42", "", 0),
    ("42", "####", 0),
    ("42", r"\boxed{}", 0),
    ("42", "#### 42\nor 43", 0),
    ("42", r"\boxed{42", 0),
    ("0.75", "#### 3/4", 1),
    ("1.5", "#### 1 1/2", 1),
    ("1000000", "#### 10^6", 1),
    ("1000000", "#### 1.000.000", None),
    ("12", "#### 12 apples", None),
    ("12", "#### 13 apples", 0),
    ("42", "#### 42%", None),
    ("42", "#### 4200", 0),
    ("42", "#### 0.42", 0),
    ("42", "#### 42.0000001", 0),
    ("42", "#### forty-two", None),
    ("42", "#### many", 0),
    ("42", "#### x = 42", 1),
    ("42", "#### 1\nso\n#### 42", 1),
    ("42", "\\boxed{7}\n#### 42", 1),
    ("42", "#### 42</s>", 1),
    ("x", "#### 42", None),
    ("42", r"\boxed{42} and \boxed{42}", 1),
    ("42", r"\boxed{42} and \boxed{42.0}", 1),
    ("42", r"\boxed{1} or \boxed{42}", None),
    ("42", r"\boxed{42} or \boxed{1}", None),
    ("42", r"\boxed{1} or \boxed{2}", 0),
    ("42", r"\boxed{x = \boxed{42}}", 1),
    ("42", "#### 5^5^5^5", None),
    ("42", r"\boxed{" * 5000, 0),
    ("6*7\n#### 42", "#### 42", 1),
    (r"\boxed{1} \boxed{2}", "#### 1", None),
]
