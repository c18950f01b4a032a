"""GFTPlugin in axolotl's own command, on a tiny model made here: its losses and weights are those
of axolotl's cross entropy.

make test-axolotl installs axolotl and runs this.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

os.environ |= {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
pytest.importorskip("axolotl", reason="axolotl is not installed: make test-axolotl")

from axolotl.cli.config import load_cfg
from axolotl.cli.train import do_cli
from axolotl.integrations.base import PluginManager

from gft_kernels.integrations.axolotl import GFTPlugin
from gft_kernels.integrations.axolotl.settings import CUT, REFUSED

from ..tiny_files import LETTERS, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("axolotl")
    save_model(folder / "model")
    rows = []
    for i in range(24):
        text = "".join(LETTERS[(3 * i + j) % len(LETTERS)] for j in range(3 + i % 5))
        rows.append({"segments": [{"label": False, "text": text}, {"label": True, "text": text + "<eos>"}]})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def config(folder: Path, name: str, gft: dict | None = None, **options: object) -> str:
    """The path of a YAML file. Without `gft` it is axolotl's alone."""
    text = {
        "base_model": str(folder / "model"),
        "tokenizer_type": "AutoTokenizer",
        "datasets": [{"path": str(folder / "data.jsonl"), "ds_type": "json", "type": "input_output"}],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / name),
        "sequence_len": 64,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "learning_rate": 0.01,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "logging_steps": 1,
        "dataset_num_proc": 1,
        "dataloader_num_workers": 0,
        "bf16": False,
        "tf32": False,
        "seed": 3,
    }
    if gft is not None:
        text |= {"plugins": ["gft_kernels.integrations.axolotl.GFTPlugin"], "gft": gft}
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(text | options))
    return str(path)


def trained(folder: Path, name: str, gft: dict | None = None, **options: object):
    """Logs of the steps, and the weights that were saved."""
    torch.manual_seed(3)  # adapters are drawn before axolotl seeds
    do_cli(config(folder, name, gft, **options))
    last = max((folder / name).glob("checkpoint-*"))
    logs = json.loads((last / "trainer_state.json").read_text())["log_history"]
    saved = "adapter_model.safetensors" if "adapter" in options else "model.safetensors"
    return logs, load_file(folder / name / saved)


LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
NO_KERNELS = {"lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False}  # those need a GPU
SETTINGS = {
    "plain": {},
    "packed": {"sample_packing": True, "pad_to_sequence_len": True, "attn_implementation": "sdpa"},
    "lora": {**LORA, **NO_KERNELS},
    "head": {**LORA, **NO_KERNELS, "lora_modules_to_save": ["lm_head", "embed_tokens"]},
    "evaluated": {"val_set_size": 0.25, "eval_steps": 3},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_sft_is_axolotls_cross_entropy(name, folder):
    (ours, got), (own, want) = (
        trained(folder, f"{name}-{kind}", gft, **SETTINGS[name])
        for kind, gft in (("gft", {"objective": "sft"}), ("own", None))
    )
    for step, reference in zip(ours, own, strict=True):
        for key in ("loss", "eval_loss", "grad_norm", "tokens/trainable"):
            assert (key in step) == (key in reference)
            if key in step:
                assert step[key] == pytest.approx(reference[key], rel=1e-5)
    assert set(got) == set(want)
    moved = 0.0
    start = load_file(folder / "model" / "model.safetensors")
    for key, tensor in want.items():
        torch.testing.assert_close(got[key], tensor, rtol=0, atol=1e-5)
        moved = max(moved, (tensor - start[key]).abs().max().item()) if key in start else 1.0
    assert moved > 1e-2


def test_gft_and_dft_train_on_their_own_loss(folder):
    found = {
        name: trained(folder, f"objective-{name}", section)[0]
        for name, section in {
            "sft": {"objective": "sft"},
            "low": {"objective": "gft", "tau": 0.0},
            "dft": {"objective": "dft"},
            "high": {"objective": "gft", "tau": 2},
        }.items()
    }
    first = {name: logs[0] for name, logs in found.items()}
    assert first["low"]["loss"] == pytest.approx(first["sft"]["loss"], rel=1e-6)
    assert first["high"]["loss"] == pytest.approx(first["dft"]["loss"], rel=1e-6)
    assert first["dft"]["loss"] < 0.2 * first["sft"]["loss"]
    assert first["dft"]["nll"] == pytest.approx(first["sft"]["nll"], rel=1e-6)
    assert first["dft"]["ppl"] == pytest.approx(first["sft"]["ppl"], rel=1e-5)  # of the NLL, not of the loss
    assert first["high"]["rectified_fraction"] == 1.0


SECTIONS = {
    "needs a section such as": None,
    "choose one of sft, dft, gft": {"objective": "grpo"},
    "tua = 0.1: the objective gft has tau": {"objective": "gft", "tua": 0.1},
    "YAML reads": {"objective": "gft", "tau": "7e-1"},
}


@pytest.mark.parametrize("said", SECTIONS)
def test_section_is_refused(said, folder):
    with pytest.raises(ValueError, match=said):
        load_cfg(config(folder, "section", SECTIONS[said] or {}))


VALUES = {"rl": "dpo", "trainer_cls": "my.Trainer", "orpo_alpha": 0.1, "label_smoothing_factor": 0.1}


@pytest.mark.parametrize("option", [*REFUSED, *CUT])
def test_option_is_refused_by_name(option, folder):
    from gft_kernels.integrations.axolotl.settings import GFTArgs

    data = {"plugins": ["gft_kernels.integrations.axolotl.GFTPlugin"], "gft": {"objective": "dft"}}
    value = 2 if option in CUT else VALUES.get(option, True)
    GFTArgs(**data, **{option: 1 if option in CUT else None})
    with pytest.raises(ValueError, match=f"do not go with the fused loss of gft: {option}"):
        GFTArgs(**data, **{option: value})
    GFTArgs(**{option: value})  # of a file that does not list the plug-in


def test_packing_is_refused_where_samples_would_see_each_other(folder):
    with pytest.raises(ValueError, match=r"sample_packing: true without attn_implementation .*set sdpa"):
        load_cfg(config(folder, "leaking", {"objective": "sft"}, sample_packing=True))


def test_options_are_refused_when_the_file_is_read(folder):
    with pytest.raises(ValueError, match=r"chunked_cross_entropy: True .*; trainer_cls: 'my.Trainer'"):
        load_cfg(config(folder, "two", {"objective": "dft"}, chunked_cross_entropy=True, trainer_cls="my.Trainer"))
    nested = {"fsdp_version": 2, "fsdp_config": {"cpu_ram_efficient_loading": True}}
    with pytest.raises(ValueError, match="cpu_ram_efficient_loading: true"):
        load_cfg(config(folder, "fsdp", {"objective": "dft"}, **nested))


def test_trainer_of_another_plugin_is_refused():
    from axolotl.core.trainers import AxolotlTrainer
    from axolotl.utils.dict import DictDefault

    other = AxolotlTrainer.__new__(AxolotlTrainer)
    with pytest.raises(ValueError, match=r"another plug-in.*AxolotlTrainer"):
        GFTPlugin().post_trainer_create(DictDefault(gft={"objective": "dft"}), other)
    GFTPlugin().post_trainer_create(DictDefault(), other)  # a later file of this process, without a section


def test_plugin_is_silent_without_its_section():
    from axolotl.utils.dict import DictDefault

    assert GFTPlugin().get_trainer_cls(DictDefault()) is None
    assert isinstance(PluginManager.get_instance().get_input_args(), list)
