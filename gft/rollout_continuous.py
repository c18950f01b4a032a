"""Samples from the current policy by transformers' continuous batching.

A sequence that has ended makes room for the next one at once. `generate` pads it until the longest
of its batch has ended. Tested on a CPU; not yet run on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig

from .policy import Policy
from .rollout import Rollout, forked_random, until_end
from .stop import check

PAGE = 32  # tokens of one sequence that lie together in the cache
PREFILL = 256  # tokens of prompts in one forward pass; longer prompts are read in several
WAIT = 0.1  # seconds between two looks for a signal


@torch.no_grad()
def sample_continuous(
    policy: Policy, prompts: list[list[int]], *, max_new_tokens: int, temperature: float, batch: int
) -> list[Rollout]:
    """One response to each prompt, as `rollout.sample` gives them; `batch` sequences are in flight.

    The model itself runs, so its weights are the current ones. Its cache is made for this call and
    dropped: pages that an earlier call left would be of older weights. torch's random state gives
    the seed, and moves by that one number.

    Cost: a cache of `batch` sequences of the longest possible length, and attention masks of
    [batch or 256, tokens of the cache], because every sequence lies in one row.

    Raises:
        ValueError: a policy that computes in bfloat16. The samples are drawn in a thread of
            transformers, which no autocast of ours reaches, and its cache has the dtype of the
            parameters, which is float32.
        RuntimeError: transformers could not run the model so.
    """
    if policy.compute != torch.float32:
        raise ValueError(
            f"the sampler continuous runs the model in the dtype of its parameters, float32, and the policy computes "
            f"in {policy.compute}: give --dtype float32, or --sampler generate."
        )
    if not prompts:
        return []
    training, model = policy.model.training, policy.model
    seed = int(torch.randint(2**31, ()).item())
    with forked_random(policy):  # transformers seeds torch's own generators
        longest = max(len(prompt) for prompt in prompts) + max_new_tokens
        manager = model.init_continuous_batching(  # type: ignore[operator]  # a mixin's, which the model's type hides
            generation_config=_generation(policy, max_new_tokens, temperature),
            continuous_batching_config=_batching(longest, min(batch, len(prompts)), seed),
        )
        try:
            outputs = _run(manager, prompts, max_new_tokens)
        finally:
            if manager.is_running():
                manager.stop(block=True, hard_stop=True)
            manager.destroy()
            model.train(training)
    return [_rollout(output, policy.end_tokens) for output in outputs]


def _generation(policy: Policy, max_new_tokens: int, temperature: float) -> GenerationConfig:
    """Of the whole distribution at the temperature: the model's own settings are not used."""
    drawn = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    ends = {"eos_token_id": sorted(policy.end_tokens), "pad_token_id": policy.tokenizer.pad_token_id}
    return GenerationConfig(max_new_tokens=max_new_tokens, top_k=0, top_p=1.0, **drawn, **ends)


def _batching(longest: int, batch: int, seed: int) -> Any:
    """Sizes of the cache.

    They are fixed, where transformers would take what memory is free: how many sequences run side
    by side decides which random number a token gets, and a run that is resumed would sample others.
    """
    from transformers import ContinuousBatchingConfig

    return ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=batch * -(-longest // PAGE),
        max_batch_tokens=max(batch, PREFILL),
        max_requests_per_batch=batch,
        allow_block_sharing=False,
        auto_switch_to_flash=False,  # flash-attn takes no float32
        return_logprobs=True,
        seed=seed,
    )


def _run(manager: Any, prompts: list[list[int]], max_new_tokens: int) -> list[Any]:
    """What the manager made of each prompt.

    All are handed over before it starts. It would else begin with those that happen to be there,
    and which random number a token gets would depend on the clock.
    """
    names = manager.add_requests(prompts, max_new_tokens=max_new_tokens)
    manager.start()
    found: dict[str, Any] = {}
    while len(found) < len(names):
        check()
        output = manager.get_result(timeout=WAIT)
        if output is None and not manager.is_running():
            raise RuntimeError(
                "transformers' continuous batching ended before the responses did: "
                f"{manager.background_thread_status.fatal_error}"
            )
        if output is not None and output.error is not None:
            raise RuntimeError(f"transformers' continuous batching failed: {output.error}. Try --sampler generate.")
        if output is not None and output.is_finished():
            found[output.request_id] = output
    return [found[name] for name in names]


def _rollout(output: Any, end_tokens: set[int]) -> Rollout:
    if len(output.logprobs) != len(output.generated_tokens):
        raise RuntimeError(
            f"transformers' continuous batching gave {len(output.logprobs)} log-probs for "
            f"{len(output.generated_tokens)} tokens. Try --sampler generate."
        )
    return until_end(output.generated_tokens, output.logprobs, end_tokens)
