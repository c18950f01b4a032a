"""The configuration: what it refuses, and what follows from the objective and the data."""

from dataclasses import replace

import pytest

from gft.settings.config import EMBEDDED, EvaluateConfig
from gft.settings.options import OptionError
from gft.settings.parts import EvalConfig, GroupConfig, SamplingConfig


def test_composition_refuses_an_empty_group():
    with pytest.raises(OptionError, match="0 expert \\+ 0 teacher \\+ 0 own"):
        replace(EMBEDDED, group=GroupConfig(0, 0, 0))


def test_train_config_tempers_the_head_only_where_there_are_samples():
    cool = SamplingConfig(temperature=0.5)
    assert replace(EMBEDDED, sampling=cool, objective="gft").head_temperature() == 0.5
    assert replace(EMBEDDED, sampling=cool, objective="sft").head_temperature() == 1.0


def test_train_config_takes_the_reward_that_fits_the_data():
    bare = replace(EMBEDDED, reward=None)
    assert replace(bare, data="rg:chain_sum").reward_name() == "exact"
    assert replace(bare, data="train.parquet").reward_name() == "number"
    assert EvaluateConfig(model="m", data="rg:chain_sum").reward_name() == "exact"
    assert EvaluateConfig(model="m", data="test.parquet").reward_name() == "number"
    assert EvaluateConfig(model="m").reward_name() == EMBEDDED.reward_name()


@pytest.mark.parametrize(
    ("asked", "eval_data", "held_out"), [(None, None, 0), (None, "x", 64), (0, "x", 0), (3, None, 3), (3, "x", 3)]
)
def test_train_config_holds_out_what_is_asked_for_or_given(asked, eval_data, held_out):
    settings = replace(EMBEDDED, eval_data=eval_data, evaluate=EvalConfig(eval_prompts=asked))
    assert settings.held_out_prompts() == held_out


@pytest.mark.parametrize(("every", "steps", "saved"), [(0, 9, []), (3, 9, [3, 6]), (3, 10, [3, 6, 9]), (9, 9, [])])
def test_train_config_saves_between_the_steps_and_at_the_end(every, steps, saved):
    assert list(replace(EMBEDDED, save_every=every, steps=steps).saved_steps()) == saved
