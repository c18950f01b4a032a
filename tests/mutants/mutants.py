"""Seeded faults of the packages, each a class of mistake that has been made in such software, and
the tests that must see it.
"""

from __future__ import annotations

from dataclasses import dataclass

AUTHORS = "tests/ops/test_authors_formula.py::test_linear_policy_loss_is_authors_formula_in_fp64"
PARITY = "tests/ops/test_parity.py"
IDENTITIES = "tests/ops/test_identities.py"
ADVANTAGES = "tests/losses/test_advantages.py"
RATIOS = "tests/losses/test_ratios.py"
REDUCTIONS = "tests/losses/test_reductions.py"
RUNTIME = "tests/ops/test_runtime.py"
FAILURES = "tests/ops/test_failure_classes.py"
NAIVE = f"{PARITY}::test_linear_policy_loss_matches_naive"


@dataclass(frozen=True)
class Mutant:
    file: str  # of gft_kernels, or gft/...
    old: str  # occurs once
    new: str
    why: str
    tests: str  # which must fail

    @property
    def path(self) -> str:
        return self.file if self.file.startswith("gft/") else f"gft_kernels/{self.file}"


MUTANTS = (
    Mutant(
        "losses/objectives.py",
        "torch.where(p < tau, p,",
        "torch.where(p <= tau, p,",
        "tau itself is rectified",
        f"{IDENTITIES}::test_gft_at_tau_is_not_rectified",
    ),
    Mutant(
        "losses/objectives.py",
        "p = logprobs.detach().exp()",
        "p = logprobs.exp()",
        "a gradient flows through C",
        AUTHORS,
    ),
    Mutant(
        "losses/ratios.py",
        "clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)",
        "clipped = ratio.clamp(1 - self.clip_high, 1 + self.clip_low)",
        "clip sides are swapped",
        f"{NAIVE}[dapo-token-mean-plain-chunked]",
    ),
    Mutant(
        "losses/ratios.py",
        "delta = -_log_ratio(logprobs, ref_logprobs)",
        "delta = _log_ratio(logprobs, ref_logprobs)",
        "the KL is taken the wrong way round",
        f"{NAIVE}[kl-token-mean-plain-chunked]",
    ),
    Mutant(
        "engines/chunked.py",
        "head.scale if head.softcap is not None else head.scale / head.temperature",
        "head.scale",
        "the temperature is forgotten",
        f"{NAIVE}[gft-sum-cool-chunked]",
    ),
    Mutant(
        "engines/chunked.py",
        "target.write(z, -rest)",
        "target.write(z, exp_target)",
        "no one-hot in the logit gradient",
        AUTHORS,
    ),
    Mutant(
        "engines/chunked.py",
        "target.write(z, -rest)",
        "target.write(z, exp_target - total)",
        "1 - p by subtraction: no digits left at p = .99999",
        f"{FAILURES}::test_linear_policy_loss_confident_rows_keep_their_gradient[0.99999-chunked]",
    ),
    Mutant(
        "engines/accumulate.py",
        "return add_matmul(total, chunk.grad.T, right)",
        "return add_matmul(total, chunk.grad.T, right).bfloat16().float()",
        "the weight gradient is accumulated in half precision",
        f"{FAILURES}::test_linear_policy_loss_weight_gradient_is_as_good_in_64_chunks_as_in_one[torch.bfloat16-chunked-512]",
    ),
    Mutant(
        "engines/accumulate.py",
        "total.mul_(scale)",
        "total.mul_(1.0)",
        "the upstream gradient is ignored",
        f"{RUNTIME}::test_linear_policy_loss_scales_with_the_upstream_gradient",
    ),
    Mutant(
        "engines/chunked.py",
        "for i in range(0, count, size)]",
        "for i in range(0, count - count % size, size)]",
        "the ragged last chunk is dropped",
        AUTHORS,
    ),
    Mutant(
        "ops/autograd.py",
        "grads, ctx.grads = ctx.grads, None",
        "grads = ctx.grads",
        "a second backward reuses, and spoils, the first one's result",
        f"{RUNTIME}::test_linear_policy_loss_second_backward_is_right_and_keeps_the_first",
    ),
    Mutant(
        "ops/autograd.py",
        "torch.where(valid, upstream[0], 0)",
        "upstream[0].clone()",
        "masked rows receive a gradient",
        f"{FAILURES}::test_linear_logprob_takes_any_upstream_gradient[random-logprobs-chunked]",
    ),
    Mutant(
        "ops/plan.py",
        "mask.nonzero().squeeze(1)",
        "mask.flip(0).nonzero().squeeze(1)",
        "gradients are written to other rows than they were computed for",
        f"{FAILURES}::test_linear_logprob_takes_any_upstream_gradient[random-logprobs-chunked]",
    ),
    Mutant(
        "ops/plan.py",
        " / valid.sum().clamp(min=1)",
        " / max(len(targets), 1)",
        "masked tokens count in the mean",
        f"{REDUCTIONS}::test_linear_policy_loss_default_is_the_mean_of_the_unmasked_tokens",
    ),
    Mutant(
        "losses/reductions.py",
        "mask.sum() if num_tokens is None else",
        "mask.sum() if num_tokens is not None else",
        "every micro-batch is averaged on its own",
        f"{REDUCTIONS}::test_token_weights_use_the_counts_of_the_step",
    ),
    Mutant(
        "losses/advantages.py",
        "centred = rewards - stats.mean[stats.group_of]",
        "centred = rewards - rewards.mean()",
        "the mean of the batch in place of the group's",
        f"{ADVANTAGES}::test_group_advantages_follow_the_definition",
    ),
    Mutant(
        "losses/advantages.py",
        "(size - 1).clamp(min=1)",
        "size.clamp(min=1)",
        "K in place of K - 1 in the std",
        f"{ADVANTAGES}::test_group_advantages_follow_the_definition",
    ),
    Mutant(
        "losses/advantages.py",
        "torch.where(stats.spread[stats.group_of], centred, 0)",
        "centred",
        "groups without spread keep rounding noise over eps",
        f"{ADVANTAGES}::test_group_advantages_equal_rewards_are_exactly_zero",
    ),
    Mutant(
        "losses/ratios.py",
        ".clamp(-60, 60).exp()",
        ".exp()",
        "an infinite ratio times a clipped gradient of 0",
        RATIOS,
    ),
    Mutant(
        "losses/reductions.py",
        "(mask.double() / lengths)",
        "(torch.ones_like(mask).double() / lengths)",
        "the ids of padding are counted as sequences",
        f"{REDUCTIONS}::test_token_weights_ignore_the_ids_of_masked_rows",
    ),
)
