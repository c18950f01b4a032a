"""AdamW's moments in a checkpoint, by the names of the weights: "model.norm.weight/exp_avg".

A model that is whole has them in one file, optimizer.safetensors. Under FSDP2 every rank writes its
own shares into the folder optimizer/, in the same format: torch.distributed.checkpoint knows from
the files' headers where a share belongs. Either is read into either, by any number of processes.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor

from .distributed import agreed, is_first
from .optim import names
from .parallel import is_sharded

FILE, SHARES = "optimizer.safetensors", "optimizer"


def save_moments(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write the moments into a folder; all ranks call it, and under FSDP2 all write.

    Raises:
        OSError: it cannot be written.
    """
    state = optimizer.state_dict()["state"]
    found = {
        f"{name}/{key}": value.contiguous()
        for i, name in enumerate(names(optimizer))
        for key, value in state.get(i, {}).items()
    }
    if is_sharded(model):
        writer = HuggingFaceStorageWriter(str(folder / SHARES), save_distributed=True)
        try:
            dcp.save(found, storage_writer=writer)
        except dcp.api.CheckpointException as error:  # no Exception there; raised on every rank
            raise OSError(f"{folder / SHARES}: {next(iter(error.failures.values()))[0]}") from error
        return
    with agreed():
        if is_first():
            save_file(found, folder / FILE)


def load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Put moments back that `save_moments` wrote. A weight without any has had no gradient yet."""
    parameters = dict(model.named_parameters())
    found = _from_file(folder / FILE, parameters) if (folder / FILE).exists() else _shares(folder / SHARES, parameters)
    moments: dict[int, dict[str, Tensor]] = {}
    for i, name in enumerate(names(optimizer)):
        own = {k.rpartition("/")[2]: v for k, v in found.items() if _name(k) == name}
        if own:
            moments[i] = own
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _from_file(path: Path, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    found = load_file(path)
    for key, value in found.items():
        parameter = parameters[_name(key)]
        if isinstance(parameter, DTensor) and value.shape == parameter.shape:
            found[key] = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return found


def _shares(folder: Path, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Each rank reads what it holds, whoever wrote it."""
    reader = HuggingFaceStorageReader(str(folder))
    found: dict[str, Tensor] = {}
    for key, saved in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(saved, TensorStorageMetadata)
        parameter = parameters[_name(key)]
        # A moment lies as its weight does; AdamW's count of steps is one number.
        found[key] = torch.empty_like(parameter) if saved.size == parameter.shape else torch.empty(saved.size)
    dcp.load(found, storage_reader=reader)
    return found


def _name(key: str) -> str:
    return key.rpartition("/")[0]
