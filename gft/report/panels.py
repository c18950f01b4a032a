"""Which numbers stand together in a picture."""

from __future__ import annotations

from dataclasses import dataclass

SOURCES = {"_expert": "expert", "_teacher": "teacher", "_self": "own"}


@dataclass(frozen=True)
class Panel:
    """One picture: a title, what it shows, and its numbers with their labels."""

    section: str
    title: str
    says: str
    keys: dict[str, str]
    is_share: bool = False
    is_count: bool = False
    has_bounds: bool = False  # the keys have _low and _high

    @property
    def slug(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


def by_source(key: str) -> dict[str, str]:
    """A number over all tokens, and the same by source."""
    return {key: "all", **{key + end: label for end, label in SOURCES.items()}}


HELD_OUT, TRAINING, POLICY, STEPS = "Held-out accuracy", "Responses", "Policy", "Updates"
PANELS = (
    Panel(
        HELD_OUT,
        "Mean reward of the samples",
        "Mean over the samples of every held-out prompt.",
        {"eval_sampled": "samples"},
        True,
        has_bounds=True,
    ),
    Panel(HELD_OUT, "Greedy", "Mean reward of the greedy response.", {"eval_greedy": "greedy"}, True, has_bounds=True),
    Panel(
        HELD_OUT,
        "Distinct answers",
        "Different texts among the samples of a prompt.",
        {"eval_distinct": "distinct"},
        True,
    ),
    Panel(
        HELD_OUT,
        "Distinct-2",
        "Different pairs of tokens in the samples of a prompt.",
        {"eval_distinct_2": "distinct-2"},
        True,
    ),
    Panel(HELD_OUT, "Length of held-out answers", "Tokens of a sample.", {"eval_response_tokens": "tokens"}),
    Panel(
        TRAINING,
        "Reward by source",
        "Mean reward of the responses of a step.",
        {f"reward{end}": label for end, label in SOURCES.items()},
        True,
    ),
    Panel(
        TRAINING,
        "Groups without spread",
        "Share of groups whose advantages are all 0: they teach nothing.",
        {"flat_groups": "flat groups"},
        True,
    ),
    Panel(TRAINING, "Spread of rewards", "Standard deviation over a step.", {"reward_std": "std"}),
    Panel(TRAINING, "Length", "Tokens of a response.", by_source("response_tokens")),
    Panel(
        TRAINING,
        "Cut responses",
        "Share of responses that reached the limit of length.",
        {"truncated": "truncated"},
        True,
    ),
    Panel(
        TRAINING,
        "Failures",
        "Rewards that failed and left no value.",
        {"reward_errors": "training", "eval_errors": "held-out"},
        is_count=True,
    ),
    Panel(POLICY, "Negative log-likelihood", "Nats a token.", by_source("nll")),
    Panel(POLICY, "Entropy", "Nats a token.", by_source("entropy")),
    Panel(
        POLICY,
        "Rectification C",
        "Mean weight of a token: 1 where p is at least tau, p below.",
        by_source("mean_c"),
        True,
    ),
    Panel(POLICY, "Rectified tokens", "Share of tokens with p below tau.", by_source("rectified_fraction"), True),
    Panel(POLICY, "KL to the reference", "Nats a token.", {"kl": "KL"}),
    Panel(POLICY, "Gap of sampler and trainer", "Mean distance of their log-probs, nats.", {"gap": "gap"}),
    Panel(
        POLICY,
        "Ratio to the sampling policy",
        "Mean of p over the p at which the token was sampled.",
        {"ratio": "ratio"},
    ),
    Panel(POLICY, "Clipped tokens", "Share of tokens that the clip altered.", {"clip_fraction": "clipped"}, True),
    Panel(STEPS, "Gradient norm", "Before clipping.", {"grad_norm": "norm"}),
    Panel(STEPS, "Learning rate", "As the optimiser had it.", {"lr": "rate"}),
    Panel(STEPS, "Loss", "Its scale depends on the objective: compare like with like.", {"loss": "loss"}),
    Panel(
        STEPS,
        "Seconds a step",
        "By what they went into.",
        {
            "seconds": "whole step",
            "seconds_rollout": "rollouts",
            "seconds_reward": "rewards",
            "seconds_update": "update",
        },
    ),
    Panel(
        STEPS, "Tokens per second", "Response tokens over the seconds of the step.", {"tokens_per_second": "tokens/s"}
    ),
    Panel(STEPS, "Peak memory", "MiB.", {"peak_memory_mib": "MiB"}),
)
