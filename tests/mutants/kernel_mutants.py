"""Seeded faults of the Triton engine and of what the engines share, each killed in Triton's
interpreter.
"""

from __future__ import annotations

from .mutants import FAILURES, NAIVE, PARITY, Mutant

TRITON = "tests/engines/triton"
LOSSES, ROWS, ENGINE, ADVANTAGES = (f"{TRITON}/test_{name}.py" for name in ("formulas", "rows", "engine", "advantages"))
UNLIKELY = f"{ROWS}::test_gradient_of_an_unlikely_target_is_right[-45.0-3-torch.bfloat16]"
CONFIDENT = f"{ROWS}::test_gradient_of_a_confident_target_is_right"
LOGPROB = f"{PARITY}::test_linear_logprob_matches_naive[plain-triton]"
PLAIN = f"{NAIVE}[sft-token-mean-plain-triton]"

KERNEL_MUTANTS = (
    Mutant(
        "engines/triton/forward.py",
        "(col < V)[None, :] & (col[None, :] != target[:, None])",
        "col[None, :] != target[:, None]",
        "padding columns take part",
        PLAIN,
    ),
    Mutant(
        "engines/triton/forward.py",
        'z = tl.where(others, transform(raw, inner, outer, CAPPED), float("-inf"))',
        'z = transform(tl.where(others, raw, float("-inf")), inner, outer, CAPPED)',
        "padding is masked before the soft cap",
        f"{NAIVE}[gft-sum-gemma-triton]",
    ),
    Mutant(
        "engines/triton/forward.py",
        "(col < V)[None, :] & (col[None, :] != target[:, None])",
        "(col < V)[None, :]",
        "the target counts among the others",
        PLAIN,
    ),
    Mutant(
        "engines/triton/forward.py",
        "tl.where(peak > target_logit + LIMIT, peak, target_logit)",
        "target_logit",
        "a tile far above the target overflows",
        f"{ROWS}::test_gradient_of_an_unlikely_target_is_right[-100.0-3-torch.bfloat16]",
    ),
    Mutant(
        "engines/triton/forward.py",
        "* stride_ek + col",
        "* V + col",
        "the row stride of the exponentials is taken for V",
        PLAIN,
    ),
    Mutant(
        "engines/triton/forward.py",
        'args["D"] % args["BLOCK_D"] == 0',
        "True",
        "the last block of D is not masked",
        PLAIN,
    ),
    Mutant(
        "engines/triton/tile.py",
        "(col % V).to(tl.int64)[None, :]",
        "(col % V)[None, :]",
        "offsets into the weight wrap at 2^31",
        f"{ENGINE}::test_linear_logprob_reads_a_weight_beyond_two_to_the_31",
    ),
    Mutant(
        "engines/triton/configs.py",
        '"inner": head.scale / head.temperature,',
        '"inner": head.scale,',
        "the kernels forget the temperature",
        f"{NAIVE}[gft-sum-cool-triton]",
    ),
    Mutant(
        "engines/triton/tile.py",
        "t = z * number(1.0 / outer, z)",
        "t = z",
        "the slope of the soft cap forgets its number",
        f"{NAIVE}[gft-sum-all-triton]",
    ),
    Mutant(
        "engines/triton/finalise.py",
        "rest += tl.sum(total * power, 0)",
        "rest += tl.sum(total, 0)",
        "tiles are added without their offsets",
        UNLIKELY,
    ),
    Mutant(
        "engines/triton/finalise.py",
        "(partial + tl.maximum(above, -1e30) * total)",
        "partial",
        "the entropy forgets the tiles' offsets",
        f"{ROWS}::test_linear_logprob_gradients_of_an_unlikely_target_are_right[-5.0-torch.float16]",
    ),
    Mutant(
        "engines/triton/finalise.py",
        "tl.load(weights_ptr + row, mask=live, other=0.0) / total",
        "tl.load(weights_ptr + row, mask=live, other=0.0)",
        "exponentials are not normalised",
        PLAIN,
    ),
    Mutant(
        "engines/triton/finalise.py",
        "-log1p(rest / own)",
        "-tl.log(1.0 + rest / own)",
        "log p of a confident row has no digits",
        f"{CONFIDENT}[0.99999-torch.float32]",
    ),
    Mutant(
        "engines/triton/finalise.py",
        "< 0.01, ratio, 1.0)",
        "< 0.01, 1.0 / ratio, 1.0)",
        "the target's rounding is doubled in place of undone",
        f"{CONFIDENT}[0.9-torch.bfloat16]",
    ),
    Mutant(
        "engines/triton/finalise.py",
        "factor /= tl.load(unit_ptr)",
        "factor /= 1.0",
        "fp16 gradients forget their unit",
        f"{CONFIDENT}[0.5-torch.float16]",
    ),
    Mutant(
        "engines/triton/finalise.py",
        "tl.minimum(shared, room)",
        "tl.minimum(shared, 15.0)",
        "fp16 overflows under large advantages",
        f"{ROWS}::test_fp16_takes_advantages_that_are_not_normalised",
    ),
    Mutant(
        "engines/triton/rescale.py",
        "if changed > 0:",
        "if changed > 1:",
        "no tile is ever rescaled",
        UNLIKELY,
    ),
    Mutant(
        "engines/triton/formulas.py",
        "p < tau",
        "p <= tau",
        "the kernel rectifies tau itself",
        f"{LOSSES}::test_objective_terms_at_tau_are_not_rectified",
    ),
    Mutant(
        "engines/triton/formulas.py",
        "clipped = clamp(ratio, 1.0 - clip_low, 1.0 + clip_high)",
        "clipped = clamp(ratio, 1.0 - clip_high, 1.0 + clip_low)",
        "the kernel swaps the clip sides",
        f"{LOSSES}::test_objective_terms_are_those_of_objectives[dapo-plain-torch.float64]",
    ),
    Mutant(
        "engines/triton/advantages.py",
        "group = tl.load(group_ids_ptr + response, mask=live, other=0)",
        "group = response",
        "a response's place is taken for its group's",
        f"{ADVANTAGES}::test_group_advantage_adds_eps_whatever_the_block",
    ),
    Mutant(
        "engines/triton/advantages.py",
        "tl.maximum(count - 1.0, 1.0)",
        "tl.maximum(count, 1.0)",
        "the kernel's std divides by K",
        f"{ADVANTAGES}::test_group_advantage_adds_eps_whatever_the_block",
    ),
    Mutant(
        "engines/triton/advantages.py",
        "tl.where(low != high, (own - mean) / scale, 0.0)",
        "(own - mean) / scale",
        "the kernel keeps rounding noise of groups without spread",
        f"{ADVANTAGES}::test_group_advantage_of_equal_rewards_is_exactly_zero",
    ),
    Mutant(
        "engines/triton/backward.py",
        "tl.where(col[None, :] == target[:, None], own[:, None], -tl.exp(log_p) * slope)",
        "-tl.exp(log_p) * slope",
        "no one-hot in the recomputed gradient",
        LOGPROB,
    ),
    Mutant(
        "engines/triton/backward.py",
        "slope += tl.load",
        "slope -= tl.load",
        "the entropy's gradient has the wrong sign",
        LOGPROB,
    ),
    Mutant(
        "engines/triton/engine.py",
        "for start in range(0, count, size):",
        "for start in range(0, count - count % size, size):",
        "Triton drops the ragged last chunk",
        PLAIN,
    ),
    Mutant(
        "engines/accumulate.py",
        "total[at : at + 8192] += matmul(a[at : at + 8192], b)",
        "total[at : at + 8192] = (total[at : at + 8192] + matmul(a[at : at + 8192], b)).bfloat16()",
        "16-bit products are added up in bf16",
        f"{FAILURES}::test_linear_policy_loss_weight_gradient_is_as_good_in_64_chunks_as_in_one[torch.bfloat16-triton-64]",
    ),
    Mutant(
        "engines/accumulate.py",
        "low = (column - high).to(grad.dtype)",
        "low = torch.zeros_like(high)",
        "the bias gradient rounds its factor to 16 bits",
        f"{CONFIDENT}[0.9-torch.bfloat16]",
    ),
    Mutant(
        "ops/plan.py",
        "normaliser = normaliser[:, rows]",
        "normaliser = normaliser[:, : len(rows)]",
        "offsets of other rows reach the backward",
        f"{FAILURES}::test_linear_logprob_takes_any_upstream_gradient[half zero-logprobs-triton]",
    ),
)
