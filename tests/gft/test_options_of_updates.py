"""Options of the optimiser and of the model that the others leave without effect."""

from pathlib import Path

import pytest

from gft.config import TrainConfig
from gft.options import OptionError, check_effects
from gft.parts import ModelConfig, OptimConfig

SFT = {"objective": "sft", "model": Path("m"), "data": "d.jsonl"}
NOTHING = ", and would do nothing"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**SFT, "optim": OptimConfig(min_lr=1e-7)}, f"--min-lr is 1e-07{NOTHING}: the rate is constant"),
        (
            {**SFT, "optim": OptimConfig(schedule="cosine", min_lr=1e-3)},
            "--min-lr is 0.001, above --lr, which is 1e-06: ",
        ),
        (
            {**SFT, "optim": OptimConfig(schedule="linear", warmup=100)},
            f"--schedule is linear{NOTHING}: the run ends in the warm-up (--warmup is 100, --steps is 100)",
        ),
        ({**SFT, "network": ModelConfig(lora_alpha=4)}, f"--lora-alpha is 4{NOTHING}: it needs the rank"),
        ({**SFT, "network": ModelConfig(lora_targets="q_proj")}, f"--lora-targets is q_proj{NOTHING}: it needs"),
        ({"network": ModelConfig(lora=4)}, f"--lora is 4{NOTHING}: the comparison trains"),
        ({"network": ModelConfig(checkpointing=True)}, f"--checkpointing is True{NOTHING}: the comparison trains"),
    ],
)
def test_check_effects_refuses_what_would_do_nothing_in_updates(changes, message):
    with pytest.raises(OptionError) as caught:
        check_effects(TrainConfig(**changes), TrainConfig())
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": OptimConfig(schedule="linear", warmup=99, min_lr=1e-6)},
        {"network": ModelConfig(lora=4, lora_alpha=4, lora_targets="q_proj", checkpointing=True, dropout=True)},
    ],
)
def test_check_effects_takes_what_does_something_in_updates(changes):
    check_effects(TrainConfig(**SFT, **changes), TrainConfig())
