"""A local transformers folder as model and tokenizer: whole, or refused; nothing in it runs.

Transformers loads much of what people have with only a warning: weights that are missing become
random, a missing tokenizer becomes an empty one. Some folders bring code, and it asks on standard
input whether to run it. Here each of these is one line that names the folder and what to do.
"""

from __future__ import annotations

import json
import pickle  # for its error alone: weights are read with weights_only
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

CONFIGS = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
SHOWN = 3  # names of weights in a message
SAVED_BY = "give a folder that {}.save_pretrained wrote"
# Constants that older versions saved with the weights: masks, frequencies and positions.
LEFTOVERS = re.compile(r"(^|\.)(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$|position_ids$")
SAFELY = {"trust_remote_code": False, "local_files_only": True}


def read_model_folder(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model, in fp32 and in eval mode, and tokenizer of a folder.

    Raises:
        FileNotFoundError: no model there.
        ValueError: the folder needs code of its own, is quantised, is not a causal language model,
            or is not whole.
    """
    _refuse_other_folders(path)
    configs = {name: _read_json(path / name) for name in CONFIGS if (path / name).is_file()}
    config = _read_config(path, configs)
    with _one_line(path, "its weights"), _quietly():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            attn_implementation="sdpa",
            weights_only=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            **SAFELY,
        )
    model, report = loaded
    _refuse_partial_weights(path, type(model).__name__, report)
    tokenizer = _read_tokenizer(path)
    _unmap(model)
    return model.eval(), tokenizer


def read_without_weights(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same with a model that has no numbers in it: it takes no memory, whatever its size.

    Raises:
        FileNotFoundError: no model there.
        ValueError: what the folder says of it is refused, or there is no tokenizer.
    """
    _refuse_other_folders(path)
    configs = {name: _read_json(path / name) for name in CONFIGS if (path / name).is_file()}
    config = _read_config(path, configs)
    with _one_line(path, "its config.json"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        if "generation_config.json" in configs:
            model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return model.eval(), _read_tokenizer(path)


def _read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    with _one_line(path, "its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, **SAFELY)
    files = getattr(tokenizer, "vocab_files_names", {}).values()
    if files and not any((path / name).is_file() for name in files):
        raise ValueError(
            f"{path} has no tokenizer (none of {', '.join(files)}): put the model's there, "
            "tokenizer.save_pretrained(folder)."
        )
    return tokenizer


def _unmap(model: PreTrainedModel) -> None:
    """Copy weights out of the file that they are mapped from.

    Whoever rewrites the file would change or kill the run. And there they lie at any address, while
    memory of torch begins at a multiple of 64: libraries may choose their kernels by that, and a
    run that goes on would differ in the last bits.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()


def _refuse_other_folders(path: Path) -> None:
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} holds no transformers model (there is no such folder). `make smollm2` makes one at "
            "models/smollm2-135m."
        )
    if (path / "adapter_config.json").exists():
        raise ValueError(
            f"{path} holds a PEFT adapter (adapter_config.json): merge it into its base model, "
            "AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained(another), and give "
            "that folder. A run of gft that has ended has it merged, as `model` beside `adapter`."
        )
    inside = path / "model"
    if not (path / "config.json").exists() and (inside / "config.json").exists():
        raise FileNotFoundError(f"{path} holds no transformers model itself, but one as `model`: give {inside}.")
    if not (path / "config.json").exists():
        raise FileNotFoundError(
            f"{path} holds no transformers model (no config.json). `make smollm2` makes one at models/smollm2-135m."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # broken UTF-8 too
        raise ValueError(f"{path} is not JSON ({error}): copy or download it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object: copy or download it again.")
    return found


def _read_config(path: Path, configs: dict[str, dict[str, Any]]) -> Any:
    """The config of a causal language model that transformers knows and that can be trained."""
    found = configs["config.json"]
    kind = found.get("model_type")
    _refuse_code(path, kind, configs)
    if kind is None:
        raise ValueError(f"{path}/config.json has no model_type: it is not a folder that transformers saved.")
    if kind not in CONFIG_MAPPING:
        raise ValueError(
            f"{path}: model_type {kind!r} is one that transformers {transformers.__version__} does not know: "
            "install a version that does."
        )
    for part in (found, *(value for value in found.values() if isinstance(value, dict))):
        quantised = part.get("quantization_config") or part.get("compression_config")
        if quantised:
            raise ValueError(
                f"{path} is quantised ({quantised.get('quant_method', 'quantization_config')}), and quantised weights "
                "cannot be trained: give the unquantised model."
            )
    with _one_line(path, "its config.json"):
        config = AutoConfig.from_pretrained(path, **SAFELY)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{path}: model_type {kind!r} has no causal language model in transformers.")
    return config


def _refuse_code(path: Path, kind: str | None, configs: dict[str, dict[str, Any]]) -> None:
    """A class that a folder brings is needed unless transformers has the one of that name."""
    of_kind = _built_in(kind)
    for name, found in configs.items():
        for auto, reference in _references(found.get("auto_map")):
            if auto.startswith("AutoModel") and auto not in of_kind:
                continue  # a class for another task
            wanted = reference.rpartition(".")[2].lower()
            known = {of_kind[auto].lower()} if auto in of_kind else {name.lower() for name in dir(transformers)}
            if not {wanted, wanted.removesuffix("fast")} & known:
                raise ValueError(_needs_code(f"{path}/{name}", f"auto_map: {auto} is {reference}"))
    if (path / "custom_generate").exists():
        raise ValueError(_needs_code(str(path), "custom_generate"))


def _built_in(kind: str | None) -> dict[str, str]:
    """Names of transformers' own classes for a model_type, empty where it has none."""
    names = {"AutoConfig": "", "AutoModelForCausalLM": ""}
    if kind is not None and kind in CONFIG_MAPPING:
        config = CONFIG_MAPPING[kind]
        names["AutoConfig"] = config.__name__
        if config in MODEL_FOR_CAUSAL_LM_MAPPING:
            names["AutoModelForCausalLM"] = getattr(MODEL_FOR_CAUSAL_LM_MAPPING[config], "__name__", "")
    return names


def _needs_code(where: str, what: str) -> str:
    return (
        f"{where} needs code that comes with the model ({what}), and none is run: give a model that transformers has "
        "built in, or remove that entry if the built-in classes read the folder rightly."
    )


def _references(auto_map: Any) -> Iterator[tuple[str, str]]:
    """(auto class, reference to code) of an auto_map, which is a list in old tokenizer configs."""
    entries = auto_map if isinstance(auto_map, dict) else {"AutoTokenizer": auto_map}
    for auto, references in entries.items():
        for reference in references if isinstance(references, (list, tuple)) else [references]:
            if reference is not None:
                yield auto, str(reference)


def _refuse_partial_weights(path: Path, model: str, report: dict[str, Any]) -> None:
    """Transformers fills what is missing with random numbers, and drops what has no place."""
    sizes = [f"{name} {tuple(saved)} for {tuple(wanted)}" for name, saved, wanted in report["mismatched_keys"]]
    strange = [name for name in report["unexpected_keys"] if not LEFTOVERS.search(name)]
    for names, what, way in (
        (sizes, "of another size than config.json says", "its config and its weights do not belong together"),
        (report["missing_keys"], "missing and would be random", SAVED_BY.format(model)),
        (strange, f"without a place in {model}", SAVED_BY.format(model)),
    ):
        if names:
            count = "1 weight is" if len(names) == 1 else f"{len(names)} weights are"
            raise ValueError(f"{path}: {count} {what} ({_names(names)}): {way}.")
    if report.get("error_msgs"):
        raise ValueError(f"{path}: its weights could not be loaded: {_shortened(report['error_msgs'][0])}")


def _names(names: Collection[str]) -> str:
    shown = sorted(names)[:SHOWN]
    return ", ".join(shown) + (", ..." if len(names) > SHOWN else "")


def _shortened(error: object) -> str:
    return " ".join(str(error).split())[:300]


@contextmanager
def _one_line(path: Path, what: str) -> Iterator[None]:
    """Whatever a folder makes transformers raise, as one line that names the folder."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: {what} could not be loaded: a pickle that is broken or holds more than tensors, which could run "
            "code: give safetensors."
        ) from error
    except Exception as error:
        raise ValueError(
            f"{path}: {what} could not be loaded ({type(error).__name__}: {_shortened(error)}): if the folder is not "
            "whole, copy or download it again."
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' own table of weights: what it would say is refused."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(cast(int, level))
