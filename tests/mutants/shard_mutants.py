"""Seeded faults of heads whose vocabulary is spread over processes."""

from __future__ import annotations

from .mutants import Mutant

SHARDS = "tests/parallel/test_vocabulary_shard.py::test_ranks_equal_one_process_in_every_output_and_gradient"
CHUNKED, TRITON, FP16 = (
    f"{SHARDS}[chunked-two-fp32]",
    f"{SHARDS}[triton-two of three, the later rank first-fp32]",
    f"{SHARDS}[triton-three, without targets on the last-fp16]",
)
MODELS = "tests/parallel/test_sharded_models.py::test_sharded_model_trains_as_one_process"
COMPILED = "tests/parallel/test_compiled.py"
REFUSALS = "tests/parallel/test_refusals.py::test_every_rank_refuses_by_name"

SHARD_MUTANTS = (
    Mutant(
        "engines/accumulate.py",
        "yield self.shard.total(total)",
        "yield total",
        "dhidden is that of a rank's own columns",
        CHUNKED,
    ),
    Mutant(
        "engines/chunked.py",
        "(gap,) = chunk.target.total(gap)",
        "(gap,) = (gap,)",
        "the entropy is that of a rank's own columns",
        CHUNKED,
    ),
    Mutant(
        "engines/chunked.py",
        "(sums,) = chunk.target.total(torch.cat(",
        "(sums,) = (lambda x: (x,))(torch.cat(",
        "a remote target's entropy is that of a rank's own columns",
        f"{SHARDS}[chunked-three, without targets on the last-fp64]",
    ),
    Mutant(
        "engines/shard.py",
        "return torch.where(self.here, z[self.index], 0)",
        "return torch.where(self.here, z[self.index], 1)",
        "ranks without a target count towards it",
        CHUNKED,
    ),
    Mutant(
        "parallel.py",
        "torch.where((column >= 0) & (column < count), column, -1)",
        "torch.where((column >= 0) & (column <= count), column.clamp(max=count - 1), -1)",
        "two ranks hold the target at their border",
        f"{SHARDS}[chunked-three, without targets on the last-fp64]",
    ),
    Mutant(
        "engines/shard.py",
        "shard.total(torch.where(targets >= 0, logits, 0))",
        "shard.total(logits)",
        "Triton's target logit counts every rank",
        TRITON,
    ),
    Mutant(
        "engines/shard.py",
        "(power * (moment + above * total)).sum(0)",
        "(power * moment).sum(0)",
        "tiles are merged without their offsets",
        FP16,
    ),
    Mutant(
        "engines/triton/engine.py",
        "return len(weight) if plan.head.shard is None else plan.head.shard.width",
        "return len(weight)",
        "ranks have chunks of their own size",
        f"{REFUSALS}[ranks of very different sizes]",
    ),
    Mutant(
        "parallel.py",
        'scale = len(counts) if reduce == "avg" else 1',
        "scale = 1",
        "FSDP2 averages what should be a sum",
        f"{MODELS}[FSDP2, uneven rows]",
    ),
    Mutant(
        "parallel.py",
        "first = sum(counts[: dist.get_rank(group)])",
        "first = 0",
        "every rank takes the gradients of the first rows",
        f"{MODELS}[FSDP2, uneven rows]",
    ),
    Mutant(
        "ops/agreement.py",
        "        own[0] = 1\n",
        "        own[0] = 0\n",
        "a rank's refusal is kept from the others",
        f"{REFUSALS}[one has a bias of another V]",
    ),
    Mutant(
        "ops/agreement.py",
        "        if start != end:\n",
        "        if start > end:\n",
        "shards may overlap",
        f"{REFUSALS}[a shard overlaps]",
    ),
    Mutant(
        "ops/agreement.py",
        "given.group_ids, given.sequence_ids, ",
        "",
        "ranks may group their rewards in ways of their own",
        f"{REFUSALS}[groups differ]",
    ),
    Mutant(
        "ops/validation.py",
        'skips = bool(getattr(objective, "zero_at_zero_advantage", False))',
        "skips = False",
        "one rank may skip rows that another waits for",
        f"{REFUSALS}[one objective skips rows]",
    ),
    Mutant(
        "ops/linear_logprob.py",
        "if head.shard is not None and torch.compiler.is_compiling():",
        "if False:",
        "a compiled program takes a shard for the whole vocabulary",
        f"{COMPILED}::test_one_graph_is_refused_by_name[scores]",
    ),
    Mutant(
        "parallel.py",
        '@torch.compiler.disable(reason="gather_rows needs',
        '@(lambda reason: lambda op: op)(reason="gather_rows needs',
        "the gather is compiled",
        f"{COMPILED}::test_one_graph_is_refused_by_name[gathered]",
    ),
    Mutant(
        "integrations/fuse.py",
        'if hasattr(hidden, "placements"):',
        "if False:",
        "a tensor-parallel head is refused without the way out",
        "tests/integrations/test_fuse_refusals.py::test_tensor_parallel_head_is_refused",
    ),
)
