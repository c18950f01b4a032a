"""Faults of several processes: what is summed over ranks, what is a rank's own, and how all end."""

from __future__ import annotations

from .mutants import Mutant

LOG = "tests/gft/distributed/test_equal.py::test_two_processes_log_the_numbers_of_one"
EQUAL, SHARES = f"{LOG}[unequal groups in micro-batches-ddp]", f"{LOG}[unequal groups in micro-batches-fsdp]"
AGREE = "tests/gft/distributed/test_agreements.py"
STOP = (
    "tests/gft/distributed/test_ends.py::test_stop_is_one_of_all_and_resumes_to_the_same_bits"
    "[SIGTERM to one in a rollout-fsdp]"
)
ERROR = "tests/gft/distributed/test_ends.py::test_error_of_one_rank_ends_all_and_is_told_once[before the first step]"

DISTRIBUTED_MUTANTS = (
    Mutant(
        "gft/update.py",
        "(summed * world_size()).backward()",
        "summed.backward()",
        "the mean over ranks is taken twice",
        EQUAL,
    ),
    Mutant(
        "gft/update.py",
        "tokens, sequences = total(sum(len(m.response) for m in counted), len(counted))",
        "tokens, sequences = sum(len(m.response) for m in counted), len(counted)",
        "tokens of the step are counted on each rank",
        EQUAL,
    ),
    Mutant(
        "gft/update.py",
        "(active_sequences,) = total(len(active))",
        "active_sequences = len(active)",
        "active sequences are those of a rank",
        EQUAL,
    ),
    Mutant(
        "gft/groups.py",
        "of_ranks = gather([(m.reward, m.group) for m in members])",
        "of_ranks = [[(m.reward, m.group) for m in members] if r == rank() else [] for r in range(2)]",
        "the std of a batch is that of a rank",
        f"{LOG}[a batch's std-ddp]",
    ),
    Mutant(
        "gft/optim.py",
        "whole(torch.nn.utils.get_total_norm(gradients))",
        'torch.nn.utils.get_total_norm([getattr(g, "_local_tensor", g) for g in gradients])',
        "the gradient norm is that of a rank's share",
        SHARES,
    ),
    Mutant(
        "gft/optim.py",
        "whole(torch.nn.utils.get_total_norm(gradients))",
        'torch.nn.utils.get_total_norm([getattr(g, "_local_tensor", g) for g in gradients])',
        "a NaN in one rank's share lets the other step",
        AGREE,
    ),
    Mutant(
        "gft/update.py",
        "**means.of_all_ranks().result()",
        "**means.result()",
        "metrics are those of rank 0",
        EQUAL,
    ),
    Mutant(
        "gft/parallel.py",
        "nullcontext() if last or wrapped is None",
        "nullcontext() if not last or wrapped is None",
        "DDP reduces before the last micro-batch",
        EQUAL,
    ),
    Mutant(
        "gft/update.py",
        "return parts + [[nobody]] * (max(gather(len(parts))) - len(parts))",
        "return parts",
        "a rank without a micro-batch leaves the others waiting",
        f"{LOG}[a rank without a group-ddp]",
    ),
    Mutant(
        "gft/distributed.py",
        "return seed + rank() * SEED_STEP",
        "return seed",
        "ranks sample alike",
        AGREE,
    ),
    Mutant(
        "gft/rollout.py",
        "synced_gpus=False",
        "synced_gpus=None",
        "generation waits for other ranks",
        AGREE,
    ),
    Mutant(
        "gft/distributed.py",
        "max(gather(stop.noted()))",
        "stop.noted()",
        "one rank stops alone",
        STOP,
    ),
    Mutant(
        "gft/checkpoint.py",
        "rank() if count == world_size() else 0",
        "0",
        "a rank goes on with rollouts and random numbers of rank 0",
        STOP,
    ),
    Mutant(
        "gft/distributed.py",
        'return _store.add("ended", 1) == 1',
        "return True",
        "an error of one rank is told by all",
        ERROR,
    ),
    Mutant(
        "gft/stop.py",
        "if _one_of_several and since < ECHO:",
        "if False:",
        "a signal's echo ends a rank at once",
        STOP,
    ),
)
