"""Samples from the current policy by vLLM, in the trainer's own process and on its GPU.

Written for the interface of vLLM 0.33 and tested against a stub of it: not yet run on a GPU.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .policy import Policy
from .rollout import Rollout, forked_random
from .stop import check

_engines: WeakKeyDictionary[PreTrainedModel, Any] = WeakKeyDictionary()  # one a model, as long as it lives


def is_installed() -> bool:
    """Whether vLLM can be imported here."""
    return importlib.util.find_spec("vllm") is not None


@torch.no_grad()
def sample_vllm(
    policy: Policy,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    batch: int,
    longest: int,
    memory: float,
) -> list[Rollout]:
    """One response to each prompt, as `rollout.sample` gives them.

    The engine is made at the first call. It wakes, takes the policy's weights, samples, and sleeps
    again, so that its memory is the trainer's between two calls. Its cache of prompts is off: it
    would be of older weights. Every prompt has a seed of its own, drawn from torch's random state.

    vLLM's kernels are not the trainer's. Log-probs differ in their last digits, more so in
    bfloat16, and depend on what runs side by side. `gap` in metrics.jsonl is that difference.

    Args:
        longest: tokens of a prompt and a response together, at most, of the whole run.
        memory: the share of the GPU's memory that vLLM may take while it samples.

    Raises:
        ValueError: a policy with LoRA.
        RuntimeError: what came back is not what was asked for.
    """
    if policy.adapter is not None:
        raise ValueError("the sampler vllm takes weights by the names of a checkpoint, which LoRA's are not.")
    from vllm import SamplingParams

    check()  # taken here, and not again before all responses are there
    asked = {
        "max_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "logprobs": 0,  # of the token that was drawn, and of no other
        "detokenize": False,
        "ignore_eos": True,  # vLLM's notion of it; the policy's own end tokens are these:
        "stop_token_ids": sorted(policy.end_tokens),
    }
    seeds = torch.randint(2**31, (len(prompts),)).tolist()
    with forked_random(policy), _awake(policy, batch, longest, memory) as engine:
        # In this process vLLM seeds and uses torch's own generators.
        engine.collective_rpc("reload_weights", kwargs={"weights_iterator": current_weights(policy)})
        outputs = engine.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [SamplingParams(**asked, seed=seed) for seed in seeds],
            use_tqdm=False,
        )
    if len(outputs) != len(prompts):
        raise RuntimeError(f"vLLM gave {len(outputs)} responses to {len(prompts)} prompts.")
    return [_rollout(output.outputs[0], policy.end_tokens) for output in outputs]


@contextmanager
def _awake(policy: Policy, batch: int, longest: int, memory: float) -> Iterator[Any]:
    """The engine of a policy. After the block it sleeps: weights in CPU memory, and no cache."""
    engine = _engines.get(policy.model)
    if engine is None:
        engine = _engines[policy.model] = _make_engine(policy, batch, longest, memory)
    else:
        engine.wake_up()
    try:
        yield engine
    finally:
        engine.sleep(level=1)


def _make_engine(policy: Policy, batch: int, longest: int, memory: float) -> Any:
    """An engine in this process, so that weights are handed over in memory."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    return LLM(
        model=policy.model.name_or_path,
        skip_tokenizer_init=True,  # prompts and responses are token ids
        dtype=str(policy.compute).removeprefix("torch."),
        # After the temperature, as the trainer's head has them. vLLM's default is before it.
        logprobs_mode="processed_logprobs",
        generation_config="vllm",  # not the model's own top-k, top-p and penalties
        enable_prefix_caching=False,
        enable_sleep_mode=True,
        gpu_memory_utilization=memory,
        max_num_seqs=batch,
        max_model_len=longest,
    )


def current_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """The policy's weights under the names of its checkpoint; a tied head is given once.

    vLLM rounds them to the dtype that it computes in, as autocast does in the trainer.
    """
    for name, parameter in policy.model.named_parameters():
        yield name, parameter.detach()


def _rollout(output: Any, end_tokens: set[int]) -> Rollout:
    """vLLM's answer, held to what was asked for.

    Greedy tokens have log-probs at temperature 1, as `rollout.sample` gives them.
    """
    tokens = list(output.token_ids)
    if not tokens or output.logprobs is None or len(output.logprobs) != len(tokens):
        raise RuntimeError(f"vLLM gave {len(tokens)} tokens with log-probs for {len(output.logprobs or ())} of them.")
    ended = tokens[-1] in end_tokens
    if output.finish_reason != ("stop" if ended else "length") or not end_tokens.isdisjoint(tokens[:-1]):
        raise RuntimeError(
            f"vLLM ended a response for the reason {output.finish_reason!r} with the token {tokens[-1]}; the policy's "
            f"end tokens are {sorted(end_tokens)}."
        )
    drawn = [place[token].logprob for token, place in zip(tokens, output.logprobs, strict=True)]
    return Rollout(tokens, not ended, drawn)
