"""vLLM's published interface, as of 0.33, in front of the model of transformers.

It takes the names that vLLM takes and no others, samples by weights that were handed over, and is
as strict as vLLM is: asleep it does nothing, and its own end token is not the policy's.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from gft.policy import Policy
from gft.rollout import sample


@dataclass
class SamplingParams:
    """The arguments of vLLM's that a sampler has use for, with vLLM's defaults."""

    max_tokens: int | None = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    logprobs: int | None = None
    detokenize: bool = True
    ignore_eos: bool = False
    stop_token_ids: list[int] | None = None


class LLM:
    """The engine. `policy` has the architecture, for which vLLM would read a folder."""

    policy: Policy
    made: list[LLM]

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        dtype: str = "auto",
        logprobs_mode: str = "raw_logprobs",
        generation_config: str = "auto",
        enable_prefix_caching: bool = True,
        enable_sleep_mode: bool = False,
        gpu_memory_utilization: float = 0.92,
        max_num_seqs: int = 256,
        max_model_len: int | None = None,
    ) -> None:
        torch.manual_seed(0)  # as vLLM does in the process that it runs in
        self.options = {k: v for k, v in locals().items() if k != "self"}
        self.model = copy.deepcopy(self.policy.model)
        for parameter in self.model.parameters():
            torch.nn.init.zeros_(parameter)  # of no use before weights were handed over
        self.asleep, self.asked = False, []
        self.made.append(self)

    def sleep(self, level: int = 1) -> None:
        assert self.options["enable_sleep_mode"]
        self.asleep = True

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.asleep = False

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert (method, self.asleep) == ("reload_weights", False)
        assert set(kwargs) == {"weights_iterator"}
        weights = dict(kwargs["weights_iterator"])
        own = dict(self.model.named_parameters())
        assert set(weights) == set(own)
        for name, value in weights.items():
            own[name].data.copy_(value)

    def generate(
        self, prompts: list[dict[str, list[int]]], sampling_params: list[SamplingParams], *, use_tqdm: bool = True
    ) -> list[SimpleNamespace]:
        assert not self.asleep
        assert len(prompts) == len(sampling_params)
        self.asked = sampling_params
        return [self._answer(p["prompt_token_ids"], params) for p, params in zip(prompts, sampling_params, strict=True)]

    def _answer(self, prompt: list[int], asked: SamplingParams) -> SimpleNamespace:
        """One response; without `ignore_eos` it would end with vLLM's own end tokens as well."""
        assert (asked.top_p, asked.top_k, asked.min_p) == (1.0, 0, 0.0)
        ends = set(asked.stop_token_ids or []) | (set() if asked.ignore_eos else {2})
        policy = Policy(self.model, self.policy.tokenizer)
        policy.encoding.end_tokens = ends
        torch.manual_seed(asked.seed)
        (found,) = sample(policy, [prompt], max_new_tokens=asked.max_tokens, temperature=asked.temperature, batch=1)
        logprobs = found.logprobs
        if self.options["logprobs_mode"] == "raw_logprobs":
            logprobs = [value * asked.temperature for value in logprobs]  # not those of the draw, in any case
        places = [{t: SimpleNamespace(logprob=v)} for t, v in zip(found.tokens, logprobs, strict=True)]
        output = SimpleNamespace(
            token_ids=tuple(found.tokens),
            logprobs=None if asked.logprobs is None else places,
            finish_reason="length" if found.truncated else "stop",
        )
        return SimpleNamespace(outputs=[output])


def installed(policy: Policy, monkeypatch: Any) -> type[LLM]:
    """Let `import vllm` find the stub; returns its engine class, whose `made` lists the engines."""
    engine = type("LLM", (LLM,), {"policy": policy, "made": []})
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = engine, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    return engine
