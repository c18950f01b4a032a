"""python -m benchmarks.sparse.errors: column-sparse gradients against the exact ones.

It measures on recorded activations what is kept and how far the gradients are off. The variants
have one eps, relative to the chunk's largest |dz|:

* `tail`: ours, a rank-one term for what was dropped.
* `none`: dropped, and nothing in its place.
* `mean`: the dropped mass of a row times the mean of the head's rows.
* `cce`: the filter of Cut Cross Entropy. Tiles of 128 rows by 128 columns in which
  |softmax - onehot| is nowhere above eps are left out, whatever the weights of the rows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from gft_kernels import Backend, Sparse, gft, linear_policy_loss

from ..inputs.cases import ACTIVATIONS, Batch, Inputs, case, make_batch
from ..record import MACHINE, RESULTS, append_rows, describe_machine

FIELDS = (
    *MACHINE,
    "inputs",
    "N",
    "D",
    "V",
    "tau",
    "rows",
    "eps",
    "error",
    "variant",
    "columns",
    "exact_chunks",
    "dropped_max",
    "dropped_mean",
    "bound",
    "dh_error",
    "dw_error",
    "ms",
    "over_exact",
    "over_exact_same_rows",
)
EPS = (2.0**-8, 2.0**-10, 2.0**-12, 2.0**-13, 2.0**-14, 2.0**-16)


def ours(batch: Batch, tau: float, backend: Backend) -> tuple[Tensor, Tensor, dict[str, float]]:
    """(dhidden, dweight, report) of the chunked engine."""
    leaves = batch.leaves()
    found = linear_policy_loss(
        leaves.hidden,
        leaves.weight,
        leaves.targets,
        leaves.advantages,
        objective=gft(tau),
        token_weights=leaves.token_weights,
        backend=backend,
    )
    found.loss.backward()
    assert leaves.hidden.grad is not None
    assert leaves.weight.grad is not None
    return (
        leaves.hidden.grad,
        leaves.weight.grad,
        {k: v.item() for k, v in found.stats.items() if k.startswith("sparse")},
    )


def probabilities(batch: Batch, tau: float) -> tuple[Tensor, Tensor]:
    """(softmax [N, V], upstream gradient of log p [N]) in fp32."""
    p = (batch.hidden @ batch.weight.T).softmax(1)
    own = p.gather(1, batch.targets[:, None]).squeeze(1)
    return p, -batch.token_weights * batch.advantages * torch.where(own < tau, own, 1.0)


def filtered(
    batch: Batch, p: Tensor, upstream: Tensor, eps: float, rows: int, variant: str
) -> tuple[Tensor, Tensor, float]:
    """(dhidden, dweight, share kept) of a filter that is not ours, written on the whole softmax."""
    dhidden, dweight, shares = [], torch.zeros_like(batch.weight), []
    for start in range(0, len(p), rows):
        at = slice(start, start + rows)
        onehot = torch.zeros_like(p[at]).scatter_(1, batch.targets[at, None], 1.0)
        plain = onehot - p[at]
        dz = upstream[at, None] * plain
        if variant == "cce":
            tiles = torch.nn.functional.max_pool2d(plain.abs()[None, None], 128, ceil_mode=True)[0, 0] > eps
            keep = tiles.repeat_interleave(128, 0)[: len(dz)].repeat_interleave(128, 1)[:, : p.shape[1]]
        else:
            keep = (dz.abs() > eps * dz.abs().amax()).any(0).expand_as(dz)
        kept = torch.where(keep, dz, 0)
        tail = (dz - kept).sum(1, keepdim=True) * batch.weight.mean(0) if variant == "mean" else 0.0
        dhidden.append(kept @ batch.weight + tail)
        dweight += kept.T @ batch.hidden[at]
        shares.append(keep.float().mean().item())
    return torch.cat(dhidden), dweight, sum(shares) / len(shares)


def time_against_exact(batch: Batch, tau: float, backend: Backend, rounds: int) -> tuple[float, float, float]:
    """(milliseconds, ratio to the exact head at its own chunk size, ratio at the same chunk size).

    Medians of interleaved rounds after a warm-up.
    """
    backends = (backend, Backend("chunked"), Backend("chunked", chunk_rows=backend.chunk_rows))
    times: tuple[list[float], ...] = ([], [], [])
    for number in range(rounds + 1):
        for each, found in zip(backends, times, strict=True):
            start = time.perf_counter()
            ours(batch, tau, each)
            if number:
                found.append((time.perf_counter() - start) * 1e3)
    ms, exact_ms, same_size_ms = map(statistics.median, times)
    return ms, ms / exact_ms, ms / same_size_ms


def measured(
    batch: Batch,
    tau: float,
    chunk_rows: Sequence[int],
    eps_values: Sequence[float],
    errors: Sequence[float],
    rounds: int,
) -> list[dict]:
    """Rows for every chunk size, threshold and variant."""
    exact = ours(batch, tau, Backend("chunked"))[:2]
    p, upstream = probabilities(batch, tau)
    relative = lambda a, b: f"{((a - b).norm() / b.norm()).item():.2e}"  # noqa: E731
    found = []
    for rows, (eps, error, variant) in product(
        chunk_rows, [*product(eps_values, [None], ("tail", "none", "mean", "cce")), *product([None], errors, ("tail",))]
    ):
        row = {"tau": tau, "rows": rows, "variant": variant}
        row |= {
            "eps": "" if eps is None else f"2^{torch.tensor(eps).log2().item():g}",
            "error": "" if error is None else error,
        }
        if variant in ("tail", "none"):
            sparse = Sparse(eps=eps, error=error or 0.0, tail=variant == "tail", pays=1.0 if eps else 0.5)
            dh, dw, report = ours(batch, tau, Backend("chunked", chunk_rows=rows, sparsity=sparse))
            row |= {"columns": f"{report['sparse_columns']:.4f}", "exact_chunks": f"{report['sparse_exact']:.2f}"}
            row |= {"bound": f"{report['sparse_error']:.2e}", "dropped_max": f"{report['sparse_dropped_max']:.2e}"}
            row |= {"dropped_mean": f"{report['sparse_dropped_mean']:.2e}"}
            if variant == "tail":
                ms, ratio, same_rows = time_against_exact(
                    batch, tau, Backend("chunked", chunk_rows=rows, sparsity=sparse), rounds
                )
                row |= {"ms": f"{ms:.0f}", "over_exact": f"{ratio:.2f}", "over_exact_same_rows": f"{same_rows:.2f}"}
        else:
            dh, dw, share = filtered(batch, p, upstream, eps or 0.0, rows, variant)
            row["columns"] = f"{share:.4f}"
        found.append(row | {"dh_error": relative(dh, exact[0]), "dw_error": relative(dw, exact[1])})
        print(
            "".join(f"{row.get(k, '')!s:>9}" for k in ("rows", "eps", "error", "variant", "columns", "bound")), end=""
        )
        print("".join(f"{found[-1][k]:>11}" for k in ("dh_error", "dw_error")), row.get("over_exact", ""), flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sparse.errors", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--inputs", choices=("real", "peaked", "random"), default="real")
    parser.add_argument(
        "--activations",
        type=Path,
        default=ACTIVATIONS,
        help="what `python -m benchmarks.inputs.activations --out` recorded",
    )
    parser.add_argument("--name", help="what the rows call these inputs")
    parser.add_argument("--head", default="smollm2", help="a head of benchmarks.inputs.cases")
    parser.add_argument("--N", type=int, default=1024)
    parser.add_argument("--tau", type=float, nargs="*", default=(0.7,))
    parser.add_argument("--rows", type=int, nargs="*", default=(128, 512), help="rows a chunk")
    parser.add_argument("--eps", type=float, nargs="*", default=EPS)
    parser.add_argument("--errors", type=float, nargs="*", default=(1e-2, 1e-3, 1e-4))
    parser.add_argument("--rounds", type=int, default=3, help="interleaved with the exact head")
    parser.add_argument("--out", type=Path, default=RESULTS / "sparse.csv")
    options = parser.parse_args(arguments)
    inputs: Inputs = options.inputs
    chosen = case(options.head, "all-active", options.N, inputs=inputs)
    batch = make_batch(chosen, activations=options.activations)
    common = describe_machine() | {"inputs": options.name or inputs, "N": chosen.N, "D": chosen.D, "V": chosen.V}
    for tau in options.tau:
        print(f"{common['inputs']}, tau {tau}")
        append_rows(
            options.out,
            [common | row for row in measured(batch, tau, options.rows, options.eps, options.errors, options.rounds)],
            FIELDS,
        )


if __name__ == "__main__":
    main()
