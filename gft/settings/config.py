"""What a run is told, as one dataclass. The command line is made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from torch import Tensor

from gft_kernels import Backend, Sparse, cispo, dft, gft, grpo, gspo, kl, reinforce, sft
from gft_kernels.losses.objectives import Objective
from gft_kernels.losses.reductions import Reduction

from .options import OptionError, check_limits, check_ranges, check_suffix
from .parts import EvalConfig, GroupConfig, ModelConfig, OptimConfig, ReuseConfig, RewardLimits, SamplingConfig

ObjectiveName = Literal["sft", "dft", "gft", "reinforce", "grpo", "cispo", "gspo"]
RATIO = ("grpo", "cispo", "gspo")  # objectives of a ratio to the policy that sampled
LoggerName = Literal["tensorboard", "trackio", "wandb"]
HELD_OUT_PROMPTS = 64  # of a file that is given for evaluation, unless a number is

# (expert, teacher, own) responses of a group, unless given
COMPOSITION = {
    "sft": (1, 0, 0),
    "dft": (1, 0, 0),
    "gft": (1, 3, 4),
    "reinforce": (0, 0, 8),
    "grpo": (0, 0, 8),
    "cispo": (0, 0, 8),
    "gspo": (0, 0, 8),
}


@dataclass(frozen=True)
class TrainConfig:
    """Train with Group Fine-Tuning or one of its relatives.

    Without --model and --objective: the embedded comparison of methods from one base. No download
    needed.
    """

    recipe: Path | None = None
    """A .toml file of options (docs/recipes.md). What is typed beside it counts."""
    model: Path | None = None
    """A local transformers folder; None uses the embedded model."""
    reference: Path | None = None
    """The folder of the reference policy of --kl. None is the model that the run begins with."""
    data: str | None = None
    """A .jsonl or .parquet file (columns of GSM8K, MATH, NuminaMath, groups, TRL or verl), or rg:NAME
    for a task of reasoning-gym."""
    eval_data: str | None = None
    """Held-out data in the same formats. None holds out the last rows of --data if --eval-prompts
    asks for any; they may be a tenth at most."""
    max_bad_fraction: float = 0.01
    """The share of bad rows of a file that is left out with a warning. More of them end the run."""
    prompt_suffix: str | None = None
    """Text at the end of every prompt, training and held-out: of the user's last message, or of a
    text. It takes the place of the instruction that prompts of GSM8K get."""
    objective: ObjectiveName | None = None
    """The loss of the responses. None is gft with --model, and the comparison without. Where a
    batch of rollouts serves one update, the ratio to the policy that sampled is 1, and grpo, cispo,
    gspo and reinforce are the same."""
    tau: float = 0.7
    """Tokens with p below it get weight p, the others 1 (gft)."""
    reduction: Reduction = "token-mean"
    reward: str | None = None
    """exact, number, math, package.module:function with verl's or TRL's signature, or a weighted sum
    such as "math + 0.1*package.module:function". None is exact for rg:NAME, else number."""
    max_failed_rewards: float = 0.3
    """The share of responses that may have no reward, because it failed. More of them end the run."""
    limits: RewardLimits = field(default_factory=RewardLimits)
    steps: int = 100
    """Optimiser steps."""
    prompts_per_step: int = 8
    """Groups an optimiser step."""
    group: GroupConfig = field(default_factory=GroupConfig)
    reuse: ReuseConfig = field(default_factory=ReuseConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    network: ModelConfig = field(default_factory=ModelConfig)
    evaluate: EvalConfig = field(default_factory=EvalConfig)
    seed: int = 0
    """Seed of the embedded base, of the order of prompts and of the sampling."""
    out: Path = Path("runs/latest")
    """Folder of the run. One that holds anything is refused, unless --resume or --overwrite is given."""
    resume: bool = False
    """Go on with the run in --out, with its own options. Begin it if the folder is empty."""
    overwrite: bool = False
    """Use the folder all the same: what this run writes is replaced, the rest stays."""
    save_every: int = 0
    """Save a checkpoint every this many steps (0: only at the end, and where a signal ends the run)."""
    keep: int = 2
    """Checkpoints that are kept, the newest (0: all of them)."""
    log_to: tuple[LoggerName, ...] = ()
    """Where the numbers go besides metrics.jsonl: tensorboard, trackio, wandb, or several of them."""
    device: str | None = None
    """cuda, cpu, ... None takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on a GPU, float32 elsewhere."""
    parallel: Literal["ddp", "fsdp"] | None = None
    """How several processes share the work: ddp, a whole model on each (also None), or fsdp, a share
    of weights, gradients and moments on each."""
    backend: Literal["auto", "triton", "chunked", "eager"] = "auto"
    """What computes the head."""
    sparse: float | None = None
    """Column-sparse gradients of the head, within this relative error of the logits' gradient, such
    as 1e-3. None is exact."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_to", tuple(self.log_to))  # JSON has lists
        check_ranges(self)
        self.composition()  # refuses an empty group

    def is_comparison(self) -> bool:
        """Whether the run is the embedded comparison of methods."""
        return self.model is None and self.data is None and self.objective is None

    def held_out_prompts(self) -> int:
        """Prompts that are held out for evaluation."""
        asked = self.evaluate.eval_prompts
        return (HELD_OUT_PROMPTS if self.eval_data else 0) if asked is None else asked

    def saved_steps(self) -> range:
        """Steps after which a checkpoint is saved. That of the last step is saved anyhow."""
        return range(self.save_every, self.steps, self.save_every) if self.save_every else range(0)

    def head_temperature(self) -> float:
        """The temperature of the log-probs.

        Where there are samples it is the one they are drawn at. Given responses alone have 1.
        """
        return self.sampling.temperature if self.composition()[2] else 1.0

    def head_backend(self) -> Backend:
        """How the head runs."""
        return Backend(self.backend, sparsity=None if self.sparse is None else Sparse(error=self.sparse))

    def reward_name(self) -> str:
        """The reward, or the one that suits the data."""
        return default_reward(self.data) if self.reward is None else self.reward

    def composition(self) -> tuple[int, int, int]:
        """(experts, teachers, own) of a group."""
        default = COMPOSITION[self.objective or "gft"]
        given = (self.group.experts, self.group.teachers, self.group.own)
        experts, teachers, own = (d if g is None else g for g, d in zip(given, default, strict=True))
        if min(experts, teachers, own) < 0 or experts + teachers + own == 0:
            raise OptionError(
                f"a group of {experts} expert + {teachers} teacher + {own} own responses is empty: raise --experts, "
                "--teachers or --own."
            )
        return experts, teachers, own

    def asks_for_rewards(self) -> bool:
        """Whether the objective looks at advantages that are not all 1."""
        return self.group.advantage == "group" and "advantages" in self.objective_function().needs

    def prompts_per_rollout(self) -> int:
        """Groups that are sampled at once."""
        return self.prompts_per_step * self.reuse.rollout_steps

    def has_ratio(self) -> bool:
        """Whether the objective has a ratio to the policy that sampled."""
        return (self.objective or "gft") in RATIO

    def keeps_old_logprobs(self) -> bool:
        """Whether the log-probs of the policy that sampled are recorded, by a forward pass."""
        return self.reuse.importance_cap is not None or (self.reuse.updates > 1 and self.has_ratio())

    def objective_function(self, tau: float | Tensor | None = None, sequence_ids: Tensor | bool = True) -> Objective:
        """The objective, with what the configuration says of it.

        A micro-batch has tau and the sequences of its tokens [B, T-1].
        """
        given = {"clip_low": self.reuse.clip_low, "clip_high": self.reuse.clip_high}
        clips: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        make: dict[str, Callable[[], Objective]] = {
            "sft": sft,
            "dft": dft,
            "gft": lambda: gft(self.tau if tau is None else tau),
            "reinforce": reinforce,
            "grpo": lambda: grpo(**clips),
            "cispo": lambda: cispo(**clips),
            "gspo": lambda: gspo(**clips, sequence_ids=sequence_ids),
        }
        found = make[self.objective or "gft"]()
        return found + kl(self.reuse.kl) if self.reuse.kl else found


@dataclass(frozen=True)
class EvaluateConfig:
    """Accuracy of a model on held-out data: greedy, and the mean of samples."""

    model: Path
    """A local transformers folder."""
    data: str | None = None
    """As for train. None is the embedded task."""
    reward: str | None = None
    """As for train."""
    limits: RewardLimits = field(default_factory=RewardLimits)
    prompts: int = HELD_OUT_PROMPTS
    """Prompts to evaluate on, from the start of the data."""
    max_bad_fraction: float = 0.01
    """As for train, of the rows that are read."""
    prompt_suffix: str | None = None
    """As for train."""
    samples: int = 16
    """Samples a prompt, besides the greedy response."""
    temperature: float = 1.0
    """Temperature of the samples."""
    max_new_tokens: int = 512
    """Longer responses are cut. The built-in rewards then give 0."""
    batch: int = 128
    """Sequences generated at once."""
    seed: int = 0
    """Seed of the samples."""
    base: Path | None = None
    """The folder of the model that --model was trained from: reports the KL to it, on the samples."""
    out: Path | None = None
    """A folder for every answer (samples.jsonl) and the numbers (eval.json). If it holds answers of
    the same evaluation, that goes on behind them. None keeps nothing."""
    device: str | None = None
    """cuda, cpu, ... None takes the GPU where there is one."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.base is not None and self.samples == 0:
            raise OptionError(f"--base is {self.base}, and would do nothing: the KL needs --samples.")
        if self.data is None and self.reward is not None:
            raise OptionError(
                f"--reward is {self.reward}, and would do nothing: without --data, the embedded task has its own."
            )
        check_suffix(self)
        check_limits(self.limits, self.reward_name())

    def reward_name(self) -> str:
        """The reward, or the one that suits the data."""
        if self.data is None:
            return EMBEDDED.reward_name()
        return default_reward(self.data) if self.reward is None else self.reward


@dataclass(frozen=True)
class ReportConfig:
    """A page of runs: curves, a table, samples to read. It needs no network and no script."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of gft train or gft eval, or folders of such folders."""
    out: Path = Path("report.html")
    """The page. Its pictures go to a folder of that name without .html."""
    prompts: int = 32
    """Held-out prompts to read, of those whose answers were kept (0: none)."""
    png: bool = True
    """Write the pictures as PNG files too."""

    def __post_init__(self) -> None:
        if self.prompts < 0:
            raise OptionError(f"--prompts is {self.prompts}; it must be at least 0.")


def default_reward(data: str | None) -> str:
    """The reward that suits the data where none is given."""
    return "exact" if (data or "").startswith("rg:") else "number"


EMBEDDED = TrainConfig(
    reward="gft.demo.sort_letters:reward",
    steps=150,
    prompts_per_step=16,
    out=Path("runs/demo"),
    sampling=SamplingConfig(max_prompt_tokens=16, max_new_tokens=9, batch=4096),
    optim=OptimConfig(lr=5e-4, micro_batch=128),
    evaluate=EvalConfig(eval_every=15, eval_prompts=256),
)
"""The recipe of the embedded task."""
