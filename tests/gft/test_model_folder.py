"""Model folders as people have them: loaded whole, or refused in one line; nothing in them runs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
)

from gft.demo.base_model import tokenizer, untrained
from gft.model.policy import load_policy

from .runs import head_weight

RAN = "import pathlib; pathlib.Path(__file__).with_name('RAN').touch()\n"
CODE = (
    RAN + "from transformers import Qwen2Config, Qwen2ForCausalLM, PreTrainedTokenizerFast\n"
    "class Config(Qwen2Config):\n    model_type = 'mynew'\n"
    "class Model(Qwen2ForCausalLM):\n    config_class = Config\n"
    "class Words(PreTrainedTokenizerFast):\n    pass\n"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    untrained(0).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    """A copy that a test may spoil; a question on standard input fails it."""

    def asked(*_: object) -> str:
        raise AssertionError("a question was asked on standard input")

    monkeypatch.setattr("builtins.input", asked)
    return Path(shutil.copytree(saved, tmp_path / "m"))


def edit(path: Path, **changes: object) -> None:
    """Set fields of a JSON file, made where there is none; None takes a field away."""
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in {**old, **changes}.items() if v is not None}))


def weights(folder: Path, change) -> None:
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors", {"format": "pt"})


def shard(folder: Path) -> None:
    untrained(0).save_pretrained(folder, max_shard_size="200KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def pickled(folder: Path) -> None:
    torch.save(dict(untrained(0).state_dict()), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def evil_pickle(folder: Path) -> None:
    torch.save({"a": Bomb(folder / "RAN")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def code(folder: Path, name: str = "conf.py") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(CODE)
    return path


def own_model(folder: Path) -> None:
    code(folder)
    edit(
        folder / "config.json",
        model_type="mynew",
        auto_map={"AutoConfig": "conf.Config", "AutoModelForCausalLM": "conf.Model"},
    )


def own_class_of_a_known_model(folder: Path) -> None:
    code(folder)
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "conf.Model"})


def code_elsewhere(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "someone/somewhere--conf.Model"})


def own_tokenizer(folder: Path) -> None:
    code(folder)
    edit(folder / "tokenizer_config.json", tokenizer_class="Words", auto_map={"AutoTokenizer": [None, "conf.Words"]})


def own_tokenizer_in_the_old_form(folder: Path) -> None:
    code(folder)
    edit(folder / "tokenizer_config.json", auto_map=["conf.Words", None])


def own_processor(folder: Path) -> None:
    code(folder)
    edit(folder / "processor_config.json", auto_map={"AutoProcessor": "conf.Words"})


def own_generation(folder: Path) -> None:
    code(folder, "custom_generate/generate.py")


def without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def larger_tokenizer(folder: Path) -> None:
    words = tokenizer()
    words.add_tokens(["<a>", "<b>"])
    words.save_pretrained(folder)


def gap_in_the_vocabulary(folder: Path) -> None:
    words = json.loads((folder / "tokenizer.json").read_text())
    words["model"]["vocab"]["z"] = 40
    (folder / "tokenizer.json").write_text(json.dumps(words))


def classifier(folder: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForSequenceClassification(LlamaConfig(vocab_size=29, **sizes)).save_pretrained(folder)


def masked_lm(folder: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertLMHeadModel(BertConfig(vocab_size=29, **sizes)).save_pretrained(folder)


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


FIRST = "model.layers.0.mlp.up_proj.weight"
SPOILERS = {
    "an adapter": (
        lambda f: [(f / "config.json").unlink(), edit(f / "adapter_config.json", base_model_name_or_path="x/y")],
        r"holds a PEFT adapter .*merge_and_unload",
    ),
    "an adapter beside a model": (lambda f: edit(f / "adapter_config.json", peft_type="LORA"), r"holds a PEFT adapter"),
    "quantised": (
        lambda f: edit(f / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantised \(gptq\).*unquantised",
    ),
    "quantised, method unnamed": (
        lambda f: edit(f / "config.json", quantization_config={"load_in_4bit": True}),
        "quantised",
    ),
    "no causal LM": (
        lambda f: (f / "config.json").write_text(json.dumps(T5Config().to_dict())),
        r"model_type 't5' .*no causal language model",
    ),
    "a classifier": (classifier, r"1 weight is missing and would be random .*lm_head\.weight"),
    "a masked LM": (masked_lm, r"BertLMHeadModel.*not causal"),
    "no model_type": (lambda f: edit(f / "config.json", model_type=None), r"config\.json has no model_type"),
    "an unknown model_type": (
        lambda f: edit(f / "config.json", model_type="mynew"),
        r"'mynew'.* transformers [0-9.]+ does not know",
    ),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json is not JSON"),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[]"), r"config\.json is not a JSON object"),
    "a config that cannot be": (
        lambda f: edit(f / "config.json", num_hidden_layers=-1),
        r"could not be loaded|without a place",
    ),
    "a config of odd types": (
        lambda f: edit(f / "config.json", hidden_size="wide"),
        r"could not be loaded \(\w+: .*\bstr\b",
    ),
    "no tokenizer": (without_tokenizer, r"no tokenizer .*save_pretrained"),
    "a tokenizer that is no JSON": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        r"tokenizer could not be loaded|not JSON",
    ),
    "more tokens than rows": (larger_tokenizer, r"31 tokens but the head 29 rows"),
    "a token id past the rows": (gap_in_the_vocabulary, r"token id 40 but the head 29 rows"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"could not be loaded"),
    "half a file of weights": (truncated, r"could not be loaded.*copy or download it again"),
    "a missing weight": (lambda f: weights(f, lambda w: w.pop(FIRST)), rf"1 weight is missing and would .*{FIRST}"),
    "a weight too many": (
        lambda f: weights(f, lambda w: w.update({"v_head.weight": torch.zeros(1)})),
        r"1 weight is without a place in Qwen2ForCausalLM .*v_head\.weight",
    ),
    "weights of another size": (lambda f: edit(f / "config.json", vocab_size=40), r"model\.embed_tokens\.weight.*29"),
    "a missing shard": (
        lambda f: [shard(f), sorted(f.glob("model-*.safetensors"))[0].unlink()],
        r"model-00001-of-\d+\.safetensors",
    ),
    "NaN weights": (lambda f: weights(f, lambda w: w[FIRST].fill_(torch.nan)), r"logits are not finite"),
    "a pickle that runs code": (evil_pickle, r"a pickle that .*give safetensors"),
    "a broken generation config": (
        lambda f: (f / "generation_config.json").write_text("{"),
        r"generation_config\.json is not JSON",
    ),
    "code for the model": (own_model, r"config\.json needs code .*conf\.Config"),
    "code for a model of a known type": (own_class_of_a_known_model, r"config\.json needs code .*conf\.Model"),
    "code of another repository": (code_elsewhere, r"needs code .*someone/somewhere--conf\.Model"),
    "code for the tokenizer": (own_tokenizer, r"tokenizer_config\.json needs code .*conf\.Words"),
    "code for the tokenizer, old form": (own_tokenizer_in_the_old_form, r"needs code .*conf\.Words"),
    "code for the processor": (own_processor, r"processor_config\.json needs code .*conf\.Words"),
    "code for generation": (own_generation, r"custom_generate/generate\.py needs code|needs code .*custom_generate"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SPOILERS)
def test_load_policy_refuses_in_one_line(name, folder):
    spoil, message = SPOILERS[name]
    spoil(folder)
    before = set(sys.modules)
    with pytest.raises((ValueError, TypeError, OSError), match=message) as caught:
        load_policy(folder, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not (folder / "RAN").exists()
    assert not [n for n in set(sys.modules) - before if n.startswith("transformers_modules.")]


@pytest.mark.parametrize("change", [shard, pickled], ids=["shards", "a pickle"])
def test_load_policy_reads_what_holds_weights_alone(change, folder):
    expected = head_weight(load_policy(folder, device="cpu"))
    change(folder)
    assert torch.equal(head_weight(load_policy(folder, device="cpu")), expected)


def test_load_policy_puts_up_with_constants_of_older_versions(folder):
    sizes = {"vocab_size": 29, "n_embd": 16, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)
    constants = {"attn.bias": torch.ones(1, 1, 8, 8), "attn.masked_bias": torch.tensor(-1e4)}
    weights(folder, lambda w: w.update({f"transformer.h.0.{name}": value for name, value in constants.items()}))
    assert len(head_weight(load_policy(folder, device="cpu"))) == 29
    weights(folder, lambda w: w.update({"transformer.h.0.attn.other.bias": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"1 weight is without a place in GPT2LMHeadModel .*attn\.other\.bias"):
        load_policy(folder, device="cpu")


def test_load_policy_takes_the_built_in_class_where_the_folders_code_is_the_same(folder):
    code(folder)
    names = {"AutoConfig": "conf.Qwen2Config", "AutoModel": "conf.Own", "AutoModelForCausalLM": "conf.Qwen2ForCausalLM"}
    edit(folder / "config.json", auto_map=names, quantization_config=None)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "conf.PreTrainedTokenizerFast"]})
    policy = load_policy(folder, device="cpu")
    assert type(policy.model).__module__.startswith("transformers.models.qwen2")
    assert not (folder / "RAN").exists()


def test_load_policy_names_the_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing holds no transformers model .*make smollm2"):
        load_policy(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"holds no transformers model \(no config\.json\)"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "nowhere"}, r"device 'nowhere' cannot be used here"),
        ({"device": "cuda:99"}, r"device 'cuda:99' cannot be used here"),
        ({"device": "meta"}, r"device 'meta' holds no numbers"),
        ({"device": "cpu", "dtype": "float31"}, r"dtype 'float31' is not one of"),
    ],
)
def test_load_policy_refuses_what_the_machine_cannot_do(options, message, saved):
    with pytest.raises(ValueError, match=message):
        load_policy(saved, **options)
