"""Seeded faults of the column-sparse gradients."""

from __future__ import annotations

from .mutants import Mutant

SPARSE, OPS = "tests/engines/test_sparse.py", "tests/ops/test_sparse_ops.py"
BOUND = f"{SPARSE}::test_the_bound_holds"
KEPT = f"{SPARSE}::test_every_column_above_the_threshold_is_kept"
PRODUCTS = f"{SPARSE}::test_both_gradients_and_the_bias_are_products_of_one_logit_gradient"
SUMS = f"{SPARSE}::test_tail_keeps_row_and_column_sums"

SPARSE_MUTANTS = (
    Mutant(
        "engines/columns.py",
        "(looked.largest > eps) | targeted |",
        "(looked.largest > eps) |",
        "the targets' columns may be dropped",
        KEPT,
    ),
    Mutant(
        "engines/columns.py",
        "(looked.largest > eps) |",
        "(looked.total > 2 * eps) |",
        "columns are kept by their sum",
        KEPT,
    ),
    Mutant(
        "engines/sparse.py",
        "left * (slope * top / total)",
        "left * (-slope * top / total)",
        "the tail has the wrong sign",
        f"{SUMS}[chunked-None]",
    ),
    Mutant(
        "engines/sparse.py",
        "if self.weight is not None:",
        "if False:",
        "dweight goes without its tail",
        f"{PRODUCTS}[chunked]",
    ),
    Mutant(
        "engines/sparse.py",
        "self.bias[:, 0] += columns",
        "self.bias[:, 0] -= columns",
        "the bias's tail has the wrong sign",
        f"{PRODUCTS}[chunked]",
    ),
    Mutant(
        "engines/sparse.py",
        "kept.rows + places.start",
        "kept.rows",
        "rows of a later chunk land in the first",
        f"{PRODUCTS}[chunked]",
    ),
    Mutant(
        "engines/columns.py",
        "products).sum() + left_out",
        "products).sum()",
        "the bound forgets the rows left out",
        BOUND,
    ),
    Mutant(
        "engines/columns.py",
        "products = torch.where(targeted, 0, looked.largest * looked.total)",
        "products = looked.largest * looked.total",
        "kept targets pay for dropped columns",
        BOUND,
    ),
    Mutant(
        "engines/columns.py",
        " | ~torch.isfinite(top)",
        "",
        "a NaN row silences its chunk",
        f"{OPS}::test_a_row_that_is_nan_stays_nan_and_alone[chunked]",
    ),
    Mutant(
        "engines/sparse.py",
        "min(2 * self.pause + 1, 63)",
        "0",
        "flat chunks are looked at every time",
        f"{SPARSE}::test_chunks_that_did_not_pay_are_looked_at_ever_more_rarely",
    ),
    Mutant(
        "engines/columns.py",
        "._replace(row_sums=grad.sum(1))",
        "",
        "a soft cap's rows are taken to add up to 0",
        f"{SUMS}[chunked-30.0]",
    ),
    Mutant(
        "engines/triton/column_stats.py",
        "scaled = tl.abs(grad) *",
        "scaled = grad *",
        "rows of a negative gradient are not seen",
        f"{OPS}::test_engines_agree_with_fp64[triton-logprob-torch.float32]",
    ),
    Mutant(
        "engines/triton/column_stats.py",
        "row.to(tl.int64)[:, None] * stride_gk",
        "row.to(tl.int64)[:, None] * V",
        "the row stride is taken for V",
        f"{SUMS}[triton-None]",
    ),
)
