"""python -m gft_kernels.check: are the ops right on this machine, and what do they cost?

Parity with fp64 and equal bits over ten runs decide the exit code; memory and speed against eager
logits are reported. `--config-search` times launch configurations of the matrix kernels on this
device instead.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from .env import versions
from .head import Backend, Head
from .losses.advantages import GroupRewards
from .losses.objectives import gft, grpo, kl, reinforce
from .ops.backends import engine_name
from .ops.linear_logprob import linear_logprob
from .ops.linear_policy_loss import linear_policy_loss

# RMS of the error over RMS of the gradient. 16 bits: three roundings (dz, the scaled hidden state,
# the result). TF32 would be far over fp32's.
GRADIENT_LIMIT = {torch.float32: 2e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}
LOGPROB_LIMIT = {"cpu": 2e-5, "cuda": 5e-4}  # nats
LOSS_LIMIT = 1e-4  # of the sum of w |log p|
CONFIGS = (
    "128x256x64x8x3",
    "128x256x64x8x4",
    "128x256x32x8x4",
    "128x256x128x8x2",
    "256x128x64x8x3",
    "256x128x64x8x4",
    "128x128x64x8x3",
    "128x128x64x4x3",
    "128x128x64x4x4",
    "128x128x128x8x3",
    "64x256x64x4x4",
    "64x256x64x8x3",
    "64x128x64x4x4",
    "128x64x64x4x4",
)


@dataclass
class Problem:
    """A batch whose losses have no jump nearby: no p within 0.1% of tau, no ratio at a clip."""

    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    bias: Tensor  # [V]
    targets: Tensor  # [N]
    token_weights: Tensor  # [N]
    rewards: Tensor  # [B]
    group_ids: Tensor  # [B]
    sequence_ids: Tensor  # [N]
    old: Tensor  # [N]
    ref: Tensor  # [N]

    def leaves(self, dtype: torch.dtype | None = None) -> Problem:
        """The same numbers, in fp64 if asked, as fresh leaves where gradients are wanted."""
        values = {f.name: getattr(self, f.name).detach() for f in fields(self)}
        if dtype is not None:
            values = {name: x.to(dtype) if x.is_floating_point() else x for name, x in values.items()}
        values |= {name: values[name].clone().requires_grad_() for name in ("hidden", "weight", "bias")}
        return Problem(**values)


def make_problem(rows: int, size: int, vocabulary: int, dtype: torch.dtype, device: str) -> Problem:
    """Sequences of 16 tokens, groups of 4, one group without spread; every third target is a likely
    one, every fifth masked.
    """
    g = torch.Generator(device).manual_seed(0)
    every = torch.arange(rows, device=device)
    weight = (torch.randn(vocabulary, size, generator=g, device=device) * size**-0.5).to(dtype)
    targets = torch.randint(vocabulary, (rows,), generator=g, device=device)
    hidden = torch.randn(rows, size, generator=g, device=device)
    hidden = torch.where((every % 3 == 0)[:, None], hidden + 12 * weight[targets].float(), hidden).to(dtype)
    logprobs = linear_logprob(hidden.double(), weight.double(), targets, backend="eager").logprobs
    near_tau = (logprobs.exp() / 0.7 - 1).abs() < 1e-3
    targets = targets.masked_fill((every % 5 == 0) | near_tau, -100)
    sequence_ids = every // 16
    sequences = int(sequence_ids[-1]) + 1
    group_ids = torch.arange(sequences, device=device) // 4
    rewards = (torch.randint(5, (sequences,), generator=g, device=device) / 4).masked_fill(group_ids == 1, 1.0)
    steps = torch.tensor([-0.5, -0.1, 0.05, 0.1, 0.5], device=device)  # a ratio of 0.8 or 1.2 is far from all of them
    old, ref = ((logprobs + steps[(every * k) % 5]).float() for k in (1, 2))
    bias = (0.3 * torch.randn(vocabulary, generator=g, device=device)).to(dtype)
    return Problem(hidden, weight, bias, targets, (targets != -100) / 8, rewards, group_ids, sequence_ids, old, ref)


def gft_rewards(p: Problem, backend: str) -> tuple[Tensor, Tensor]:
    rewards = GroupRewards(p.rewards, p.group_ids, p.sequence_ids)
    return linear_policy_loss(
        p.hidden, p.weight, p.targets, rewards, objective=gft(0.7), token_weights=p.token_weights, backend=backend
    )[:2]


def grpo_kl(p: Problem, backend: str) -> tuple[Tensor, Tensor]:
    return linear_policy_loss(
        p.hidden,
        p.weight,
        p.targets,
        p.rewards[p.sequence_ids] - 0.5,
        objective=grpo(0.2, 0.2) + kl(0.05),
        token_weights=p.token_weights,
        old_logprobs=p.old,
        ref_logprobs=p.ref,
        backend=backend,
    )[:2]


def transformed(p: Problem, backend: str) -> tuple[Tensor, Tensor]:
    return linear_policy_loss(
        p.hidden,
        p.weight,
        p.targets,
        p.rewards[p.sequence_ids] - 0.5,
        objective=reinforce(),
        token_weights=p.token_weights,
        head=Head(bias=p.bias, softcap=8.0, temperature=0.9),
        backend=backend,
    )[:2]


def logprob_entropy(p: Problem, backend: str) -> tuple[Tensor, Tensor]:
    out = linear_logprob(p.hidden, p.weight, p.targets, backend=backend)
    slope = p.rewards[p.sequence_ids] - 0.5
    return (p.token_weights * slope * (out.logprobs - 0.3 * out.entropy)).sum(), out.logprobs.detach()


CASES: dict[str, Callable[[Problem, str], tuple[Tensor, Tensor]]] = {
    "gft, group rewards": gft_rewards,
    "grpo + kl": grpo_kl,
    "bias, softcap, temperature": transformed,
    "log p and entropy": logprob_entropy,
}


def results(case: str, problem: Problem, backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """loss, log p, d hidden, d weight of a case."""
    leaves = problem.leaves(dtype)
    loss, logprobs = CASES[case](leaves, backend)
    loss.backward()
    assert leaves.hidden.grad is not None
    assert leaves.weight.grad is not None
    return [loss.detach(), logprobs, leaves.hidden.grad, leaves.weight.grad]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def parity(case: str, problem: Problem) -> tuple[bool, str]:
    """Errors of backend auto against the fp64 reference of the same quantised numbers."""
    found, expected = (results(case, problem, *run) for run in (("auto",), ("eager", torch.float64)))
    scored = found[1].isfinite()  # rows the head skipped hold NaN
    logprobs = float((found[1] - expected[1])[scored].abs().max())
    loss = float((found[0] - expected[0]).abs() / (problem.token_weights * expected[1].abs())[scored].sum())
    hidden, weight = (relative(found[i], expected[i]) for i in (2, 3))
    dtype, device = problem.hidden.dtype, problem.hidden.device.type
    rounding = GRADIENT_LIMIT[dtype]
    right = hidden <= rounding and weight <= rounding and logprobs <= LOGPROB_LIMIT[device] and loss <= LOSS_LIMIT
    return right, f"dhidden {hidden:.1e}  dweight {weight:.1e}  log p {logprobs:.1e}  loss {loss:.1e}"


def determinism(case: str, problem: Problem) -> tuple[bool, str]:
    first = results(case, problem, "auto")
    same = 1 + sum(all(torch.equal(a, b) for a, b in _pairs(first, results(case, problem, "auto"))) for _ in range(9))
    return same == 10, f"{same} of 10 runs have the same bits"


def _pairs(first: list[Tensor], second: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(first, second, strict=True)]


def report(name: str, check: Callable[[], tuple[bool, str]]) -> bool:
    """Run a check and print its line; an exception is a failure."""
    try:
        passed, text = check()
    except Exception as error:
        passed, text = False, f"{type(error).__name__}: {error}"
    print(f"{'PASS' if passed else 'FAIL'}  {name:<48} {text}", flush=True)
    return passed


def peak_mib(run: Callable[[], object]) -> float:
    """Extra memory of `run` at its peak, of the device's allocator."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def milliseconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def fitting(rows: int, size: int, vocabulary: int, row_bytes: int, device: str) -> tuple[int, int, int]:
    """The sizes, rows and then the vocabulary halved until the device's free memory holds row_bytes
    * N * V + 12 * V * D.
    """
    free = 0.8 * torch.cuda.mem_get_info()[0] if device == "cuda" else float("inf")
    while row_bytes * rows * vocabulary + 12 * vocabulary * size > free and vocabulary > 1024:
        rows, vocabulary = (rows // 2, vocabulary) if rows > 1024 else (rows, vocabulary // 2)
    return rows, size, vocabulary


def costs(device: str, dtype: torch.dtype) -> None:
    """Memory and time of the GFT loss, forward and backward, against eager logits: interleaved,
    medians of five.
    """
    sizes = fitting(8192, 2048, 131072, 24, device) if device == "cuda" else (512, 128, 16384)
    problem = make_problem(min(sizes[0], 512), *sizes[1:], dtype, device)
    repeats = sizes[0] // len(problem.targets)
    for name in ("hidden", "targets", "token_weights", "sequence_ids", "old", "ref"):
        x = getattr(problem, name)
        setattr(problem, name, x.repeat(repeats, *[1] * (x.ndim - 1)))
    runs = {name: partial(results, "gft, group rewards", problem, name) for name in ("eager", "auto")}
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(5):
        for name, run in runs.items():
            times[name].append(milliseconds(run, device))
    eager, own = (statistics.median(times[name]) for name in ("eager", "auto"))
    shape = "x".join(map(str, sizes)) + f" {dtype}"
    if device == "cuda":
        peaks = {name: peak_mib(run) for name, run in runs.items()}
        print(f"      peak extra memory, {shape:<35}  {peaks['auto']:.0f} MiB, eager logits {peaks['eager']:.0f} MiB")
    print(f"      forward and backward, {shape:<32}  {own:.1f} ms, eager logits {eager:.1f} ms ({eager / own:.2f}x)")


def config_search(rows: int, size: int, vocabulary: int, dtype: torch.dtype) -> int:
    """Time the GFT loss, forward and backward, under every configuration of CONFIGS; best first."""
    from .engines.triton.configs import parse_config, use_config  # Triton only where it runs

    rows, size, vocabulary = fitting(rows, size, vocabulary, 4, "cuda")
    print(f"\n{rows}x{size}x{vocabulary} {dtype}, forward and backward (rows x vocabulary x depth x warps x stages)")
    g = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(rows, size, generator=g, device="cuda", dtype=dtype).requires_grad_()
    weight = (torch.randn(vocabulary, size, generator=g, device="cuda", dtype=dtype) * size**-0.5).requires_grad_()
    targets = torch.randint(vocabulary, (rows,), generator=g, device="cuda")
    advantages = torch.randn(rows, generator=g, device="cuda")

    def run() -> None:
        hidden.grad = weight.grad = None
        linear_policy_loss(
            hidden, weight, targets, advantages, backend=Backend("triton", validate=False)
        ).loss.backward()

    found = []
    for text in CONFIGS:
        with use_config(parse_config(text)):
            try:
                run()  # compiles
                found.append((statistics.median(milliseconds(run, "cuda") for _ in range(7)), text))
                print(f"  {text:<18} {found[-1][0]:9.2f} ms", flush=True)
            except Exception as error:
                print(f"  {text:<18} left out: {type(error).__name__}: {str(error)[:100]!r}", flush=True)
    if not found:
        print("no configuration ran.")
        return 1
    print("\nbest first:")
    for ms, text in sorted(found):
        print(f"  {text:<18} {ms:9.2f} ms")
    print(f"\nexport GFT_KERNELS_CONFIG={min(found)[1]}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gft_kernels.check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--config-search", action="store_true", help="time launch configurations at the sizes below")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=131072)
    options = parser.parse_args(arguments)
    device = options.device
    for name, value in versions().items():
        print(f"{name:<14} {value}")
    if device == "cuda" and not torch.cuda.is_available():
        print(f"\nno CUDA or ROCm device is visible to torch {torch.__version__}.")
        return 1
    halves = (torch.bfloat16,) if device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False) else ()
    if options.config_search:
        if device == "cpu":
            print("\n--config-search times Triton kernels: it needs a CUDA or ROCm device.")
            return 1
        return config_search(options.rows, options.hidden, options.vocab, (*halves, torch.float16)[0])
    print(f"backend        auto is {engine_name('auto', torch.device(device), torch.float32)!r}\n")
    passed = True
    for dtype in (*halves, torch.float16, torch.float32):
        problem = make_problem(*((384, 512, 32001) if device == "cuda" else (96, 48, 1001)), dtype, device)
        short = str(dtype).removeprefix("torch.")
        for case in CASES:
            passed &= report(f"parity {short}: {case}", partial(parity, case, problem))
        passed &= report(f"determinism {short}", partial(determinism, "gft, group rewards", problem))
    try:
        costs(device, torch.float32 if device == "cpu" else (*halves, torch.float16)[0])
    except torch.OutOfMemoryError as error:
        print(f"      costs were not measured: {error}")
    print("\nall checks passed" if passed else "\nsome checks FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
