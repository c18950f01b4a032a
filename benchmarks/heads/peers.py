"""Other people's heads, called as their users call them, with the GFT loss on top.

`find_peers` says who can run here and why the others cannot. Costs are multiples of N * D * V
operations, forward and backward; one product with the head is 2. All but QuACK compute the logits
twice: only the backward pass tells them the weight of a row.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..inputs.cases import TAU, Batch

Provider = Callable[[Batch], Tensor]
LIGER_ROWS = 1024  # of a chunk of Liger's GRPO head, whose default is one sequence: one of this length


def trl() -> Provider:
    """TRL's chunked log-prob: 8, fp32 accumulators.

    As its `add_fused_lm_head`: a GPU sees the rows with a target only, a CPU all.
    """
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    def provider(batch: Batch) -> Tensor:
        mask, compact = batch.targets != -100, batch.hidden.is_cuda
        logprobs, *_ = ChunkedLogProbFunction.apply(
            batch.hidden[mask] if compact else batch.hidden,
            batch.weight,
            None,  # bias
            batch.targets[mask] if compact else batch.targets.clamp(min=0),
            1.0,  # temperature
            _CHUNKED_LOGPROB_CHUNK_SIZE,
            None,  # final_logit_softcapping
            1.0,  # logit_scale
            ("log_probs",),
        )
        if compact:
            return batch.gft_loss(logprobs.new_zeros(mask.shape).masked_scatter(mask, logprobs))
        return batch.gft_loss(logprobs.masked_fill(~mask, 0))

    return provider


def liger_scaled_ce() -> Provider:
    """Liger's scaled cross entropy: 8, all rows.

    CuTe kernels on compute capability 9.0 (bf16 only); else torch, 512 rows at a time.
    """
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as head
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import _resolve_implementation

    if torch.cuda.is_available():
        _resolve_implementation(
            torch.device("cuda")
        )  # it imports its CuTe kernels when called: here, a failure is a reason

    def provider(batch: Batch) -> Tensor:
        return batch.gft_loss(-head.apply(batch.hidden, batch.weight, batch.targets))

    return provider


def liger_flce() -> Provider:
    """Liger's fused linear cross entropy, per-token losses out: 8 (6 for its scalar), all rows.

    Gradients are summed in the case's dtype.
    """
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as head

    def provider(batch: Batch) -> Tensor:
        # after the targets: bias, class weights, ignore_index, lse_square_scale, label_smoothing,
        # reduction
        losses, *_ = head.apply(batch.hidden, batch.weight, batch.targets, None, None, -100, 0.0, 0.0, "none")
        return batch.gft_loss(-losses)

    return provider


def liger_grpo() -> Provider:
    """Liger's chunked GRPO head with the GFT loss in place of its own: 8, all rows.

    Its gradients are at hand after the forward pass, from products in fp32 whatever the case's
    dtype. A row is a sequence of one token, so that any number of rows fits and every token has its
    own advantage.
    """
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

    class GFTFunction(LigerFusedLinearGRPOFunction):
        @staticmethod
        def ppo_loss_fn(
            per_token_logps: Tensor, attention_mask: Tensor, advantages: Tensor, **options: object
        ) -> tuple[Tensor, list]:
            p = per_token_logps.detach().exp()
            return -(attention_mask * advantages * torch.where(p < TAU, p, 1.0) * per_token_logps).sum(), []

    def provider(batch: Batch) -> Tensor:
        mask = (batch.targets != -100).unsqueeze(1)
        # A chunk of rows cannot know the token mean: the advantages carry the token weights.
        weighted = (batch.token_weights * batch.advantages).unsqueeze(1)
        # No bias; of the reference and the old policy no log-probs; of the reference no input and head.
        policy = [None] * 6
        # beta, ..., sapo_temperature_neg: the GFT loss has no use for them.
        options = [0.0, 0.2, 0.2, "dapo", None, "token", 1.0, 1.05]
        runs = (1.0, batch.hidden.is_cuda, False, LIGER_ROWS)  # temperature, compiled, use_ref_model, chunk_size
        targets = batch.targets.clamp(min=0).unsqueeze(1)
        loss, _ = GFTFunction.apply(
            batch.hidden.unsqueeze(1), batch.weight, targets, mask, weighted, *policy, *options, *runs
        )
        return loss

    return provider


def cce(**options: float | None) -> Provider:
    """Cut Cross Entropy: 4 + 4f for the share f of tiles kept, rows with a target only.

    It takes hidden states in bf16 and fp16. By default it drops the tiles in which softmax - onehot
    is below 2^-12 (bf16) everywhere, whatever the weights of the rows: a flat softmax loses some per
    cent of its gradient. filter_eps=None keeps every tile (f = 1).
    """
    from cut_cross_entropy import linear_cross_entropy

    def provider(batch: Batch) -> Tensor:
        return batch.gft_loss(
            -linear_cross_entropy(batch.hidden, batch.weight, batch.targets, reduction="none", **options)
        )

    return provider


def verl_torch() -> Provider:
    """verl's chunked torch head: 8, all rows (masked ones as token 0), chunks of 512 rows."""
    with _bare_packages("verl", "verl.utils"):
        head = importlib.import_module("verl.utils.experimental.torch_functional").FusedLinearForPPO(
            impl_backend="torch"
        )

    def provider(batch: Batch) -> Tensor:
        logprobs, _ = head(batch.hidden, batch.weight, batch.targets.clamp(min=0))
        return batch.gft_loss(logprobs)

    return provider


def verl_triton() -> Provider:
    """verl's Triton head: 8, all rows (masked ones as token 0), logits of 1024 columns at a time.

    D has to be a multiple of 128.
    """
    with _bare_packages("verl", "verl.utils"):
        head = importlib.import_module("verl.utils.kernel.linear_cross_entropy").linear_cross_entropy
        importlib.import_module("verl.utils.kernel.kernels")  # the head imports it when called

    def provider(batch: Batch) -> Tensor:
        logprobs, _ = head(batch.hidden.contiguous(), batch.weight, batch.targets.clamp(min=0), 1.0, "none")
        return batch.gft_loss(logprobs)

    return provider


def quack() -> Provider:
    """QuACK's per-token losses: 6, all rows, with the logits in full.

    Its chunked head returns a scalar only.
    """
    from quack.linear_cross_entropy import linear_cross_entropy_func

    def provider(batch: Batch) -> Tensor:
        losses = linear_cross_entropy_func(batch.hidden, batch.weight, None, batch.targets, reduction="none")
        return batch.gft_loss(-losses)

    return provider


@dataclass(frozen=True)
class Peer:
    package: str
    module: str
    load: Callable[[], Provider]
    gpu: bool = False


PEERS = {
    "trl": Peer("trl", "trl", trl),
    "liger-scaled-ce": Peer("liger-kernel", "liger_kernel", liger_scaled_ce),
    "liger-flce": Peer("liger-kernel", "liger_kernel", liger_flce, gpu=True),
    "liger-grpo": Peer("liger-kernel", "liger_kernel", liger_grpo),
    "cce": Peer("cut-cross-entropy", "cut_cross_entropy", cce, gpu=True),
    "cce-exact": Peer("cut-cross-entropy", "cut_cross_entropy", lambda: cce(filter_eps=None), gpu=True),
    "verl-torch": Peer("verl", "verl", verl_torch),
    "verl-triton": Peer("verl", "verl", verl_triton, gpu=True),
    "quack": Peer("quack-kernels", "quack", quack, gpu=True),
}


def find_peers() -> tuple[dict[str, Provider], dict[str, str]]:
    """The peers that run here, and for every other one the reason why it does not.

    It imports what it can of their packages.
    """
    found: dict[str, Provider] = {}
    missing: dict[str, str] = {}
    for name, peer in PEERS.items():
        try:
            if find_spec(peer.module) is None:
                missing[name] = f"{peer.package} is not installed"
            elif peer.gpu and not torch.cuda.is_available():
                missing[name] = "needs a CUDA device"
            else:
                found[name] = peer.load()
        except Exception as error:  # a package's import runs its own code, which may fail in any way
            missing[name] = f"{type(error).__name__}: {error}"
    return found, missing


@contextmanager
def _bare_packages(package: str, *inner: str) -> Iterator[None]:
    """Import modules of these packages without their __init__, which may need more (verl's: ray).

    Until the end the packages are empty ones.
    """
    spec = find_spec(package)
    root = Path(next(iter(spec.submodule_search_locations or []))) if spec else Path()
    bare = {name: root.joinpath(*name.split(".")[1:]) for name in (package, *inner) if name not in sys.modules}
    for name, path in bare.items():
        module = ModuleType(name)
        module.__path__ = [str(path)]
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in bare:
            del sys.modules[name]
