"""What the limits of length leave of examples: prompts that fit, and responses dropped or cut."""

import pytest

from gft.data.files import Example, Response
from gft.groups import given_responses
from gft.survey import survey
from gft.usable import usable_examples

from .test_usable import config, expert


@pytest.mark.parametrize("prompt", ["a" * 20 + "=", ""])
def test_survey_leaves_out_prompts_that_do_not_fit(policy, prompt):
    found = survey(policy, [Example(prompt, "a"), Example("ba=", "a")], config())
    assert [m.example.prompt for m in found.usable] == ["ba="]
    assert (len(found.measured), found.long_prompts, found.emptied) == (2, 1, 0)


LONG = (
    Response("c" * 9, "expert", 1.0),
    Response("b" * 10, "teacher", 0.0),
    Response("ab", "teacher", 0.5),
    Response("a" * 30, "teacher", 0.0),
    Response("ba", "teacher", 0.25),
)


def test_usable_examples_drops_long_responses_and_the_next_ones_take_their_place(policy):
    said = []
    settings = config(1, 2, 1, max_given_tokens=10)
    (kept,) = usable_examples(policy, [Example("ab=", "a", LONG, origin="f:7")], settings, said.append)
    assert [r.text for r in given_responses(kept, settings)] == ["c" * 9, "ab", "ba"]
    assert said == [
        "2 given responses (2 teacher) are longer than 10 tokens (--max-given-tokens) and were dropped from their "
        "groups (--long-given cut trains on their beginnings); the longest has 31, f:7"
    ]


def test_usable_examples_leaves_long_responses_that_no_group_takes(policy):
    example = Example("ab=", "a", LONG)
    said = []
    assert usable_examples(policy, [example], config(1, 0, 1, max_given_tokens=10), said.append) == [example]
    assert said == []


def test_usable_examples_keeps_long_responses_that_are_to_be_cut(policy):
    said = []
    settings = config(1, 3, 1, max_given_tokens=9, long_given="cut")
    examples = [Example("ab=", "a", LONG, origin="f:7")]
    assert usable_examples(policy, examples, settings, said.append) == examples
    assert said == [
        "3 given responses (1 expert, 2 teacher) are longer than 9 tokens (--max-given-tokens) and are cut there: they "
        "are scored by their whole text, and trained on without an end; the longest has 31, f:7"
    ]


def test_usable_examples_leaves_out_examples_that_lose_all_their_responses(policy):
    said = []
    lost, kept = expert("ab=", "c" * 20, "f:1"), expert("b=", "c", "f:2")
    settings = config(1, 0, 0, max_given_tokens=10)
    assert usable_examples(policy, [lost, kept], settings, said.append) == [kept]
    assert said[1] == "1 examples have no other response and were left out"
    with pytest.raises(ValueError, match="all given responses of 1 examples are longer than 10 tokens: raise --max-"):
        usable_examples(policy, [lost], settings, said.append)
    (empty,) = usable_examples(policy, [lost], config(1, 0, 2, max_given_tokens=10), said.append)
    assert empty.responses == ()  # its group has own samples


def test_usable_examples_counts_no_response_behind_a_prompt_that_is_left_out(policy):
    said = []
    examples = [expert("a" * 20 + "=", "c" * 20), expert("b=", "c", "f:2")]
    assert usable_examples(policy, examples, config(1, 0, 2, max_given_tokens=10), said.append) == examples[1:]
    assert said == ["1 prompts are empty or longer than 16 tokens and were left out"]
