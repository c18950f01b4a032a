"""The configuration: what it refuses, and what follows from the objective and the data."""

from dataclasses import replace

import pytest

from gft.config import EMBEDDED, GroupConfig, SamplingConfig


def test_composition_refuses_an_empty_group():
    with pytest.raises(ValueError, match="0 expert \\+ 0 teacher \\+ 0 own"):
        replace(EMBEDDED, group=GroupConfig(0, 0, 0)).composition()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts_per_step": 0}, "--prompts-per-step is 0"),
        ({"sampling": SamplingConfig(temperature=0.0)}, r"--temperature is 0\.0"),
        ({"sampling": SamplingConfig(batch=0)}, "--batch is 0; it must be at least 1"),
    ],
)
def test_train_config_names_the_flag_that_is_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(EMBEDDED, **changes)


def test_train_config_tempers_the_head_only_where_there_are_samples():
    cool = SamplingConfig(temperature=0.5)
    assert replace(EMBEDDED, sampling=cool, objective="gft").head_temperature() == 0.5
    assert replace(EMBEDDED, sampling=cool, objective="sft").head_temperature() == 1.0


def test_train_config_takes_the_reward_that_fits_the_data():
    bare = replace(EMBEDDED, reward=None)
    assert replace(bare, data="rg:chain_sum").reward_name() == "exact"
    assert replace(bare, data="train.parquet").reward_name() == "number"
