"""python -m benchmarks.inputs.activations: record what the head of a real model is fed.

Response tokens of expert answers and of the model's own samples, in turn by sequence: about half of
the rows each, where the answers are long enough (those of gsm_symbolic are a number). The file
holds the head's input exactly: logits are hidden @ weight.T.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gft.data.files import Example, load_examples
from gft.model.policy import Policy, load_policy
from gft.sampling.rollout import sample
from gft.settings.parts import SamplingConfig
from gft.usable import fit_prompts, measure
from gft_kernels.integrations.hf import split_head

from .cases import ACTIVATIONS, TAU

MODEL = Path("models/smollm2-135m")
DATA = "rg:gsm_symbolic"
NEW_TOKENS = 128
PROMPTS_AT_ONCE = 16

Response = tuple[list[int], list[int], bool]  # prompt, response, own sample


def responses(policy: Policy, examples: Sequence[Example], rows: int) -> list[Response]:
    """Sequences of `rows` response tokens or a little more, half expert and half the model's own.

    The kind that is behind comes next, as long as there is one of it.

    Raises:
        ValueError: the examples gave too few tokens.
    """
    chosen: list[Response] = []
    count = {False: 0, True: 0}
    for start in range(0, len(examples), PROMPTS_AT_ONCE):
        waiting = _some(policy, examples[start : start + PROMPTS_AT_ONCE])
        while waiting and sum(count.values()) < rows:
            behind = count[True] < count[False]
            following = next((r for r in waiting if r[2] == behind), waiting[0])
            waiting.remove(following)
            chosen.append(following)
            count[following[2]] += len(following[1])
        print(f"{count[False]} expert and {count[True]} own rows of {rows}", flush=True)
        if sum(count.values()) >= rows:
            return chosen
    raise ValueError(
        f"{len(examples)} examples gave {count[False]} expert and {count[True]} own tokens; {rows} rows need more."
    )


def _some(policy: Policy, examples: Sequence[Example]) -> list[Response]:
    """The first expert answer of each example that has one, and an own sample for each."""
    prompts = [policy.encode_prompt(e.prompt) for e in examples]
    own = sample(policy, prompts, max_new_tokens=NEW_TOKENS, temperature=1.0, batch=PROMPTS_AT_ONCE)
    found: list[Response] = []
    for example, prompt, rollout in zip(examples, prompts, own, strict=True):
        expert = next((r.text for r in example.responses if r.source == "expert"), None)
        if expert is not None:
            found.append((prompt, policy.encode_response(expert), False))
        found.append((prompt, rollout.tokens, True))
    return found


@torch.no_grad()
def head_inputs(policy: Policy, found: Sequence[Response], rows: int) -> dict[str, Tensor]:
    """The file's tensors.

    Hidden states that predict the response tokens, their targets, and whether they are own samples.
    """
    hidden, targets, owned, parts = [], [], [], split_head(policy.model)
    for prompt, response, own in found:
        tokens = torch.tensor([prompt + response], device=policy.device)
        with policy.precision():
            states = parts.backbone(input_ids=tokens, use_cache=False).last_hidden_state
        hidden.append(states[0, len(prompt) - 1 : -1].to(policy.compute).float().cpu())
        targets.append(torch.tensor(response))
        owned.append(torch.full((len(response),), own))
    weight = parts.weight.detach().cpu()
    half = weight.bfloat16()
    stored = half if torch.equal(half.float(), weight) else weight  # a fine-tuned head is not exact in bf16
    joined = {"hidden": torch.cat(hidden), "targets": torch.cat(targets), "own": torch.cat(owned)}
    return {name: tensor[:rows].clone() for name, tensor in joined.items()} | {"weight": stored}


@torch.no_grad()
def summary(record: dict[str, Tensor]) -> dict[str, float]:
    """How sure the model is.

    Mean NLL, mean probability of the likeliest token, and share of targets with p >= TAU.
    """
    weight, nll, top = record["weight"].float(), [], []
    for hidden, targets in zip(record["hidden"].split(512), record["targets"].split(512), strict=True):
        logprobs = torch.log_softmax(hidden @ weight.T, -1)
        nll.append(-logprobs.gather(1, targets[:, None])[:, 0])
        top.append(logprobs.amax(1).exp())
    losses = torch.cat(nll)
    sure = (losses.neg().exp() >= TAU).float()
    return {"nll": losses.mean().item(), "top1": torch.cat(top).mean().item(), "sure": sure.mean().item()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inputs.activations", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="local transformers folder")
    parser.add_argument("--data", default=DATA, help="a file that gft reads, or rg:NAME of reasoning-gym")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--out", type=Path, default=ACTIVATIONS)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    policy = load_policy(options.model)
    head = split_head(policy.model).head
    if (head.bias, head.scale, head.softcap) != (None, 1.0, None):
        raise ValueError(f"the head of {options.model} transforms its logits: hidden @ weight.T would not be them.")
    measured = measure(policy, [(e, ()) for e in load_examples(options.data)], max_bad_fraction=0.01)
    examples = [m.example for m in fit_prompts(measured, SamplingConfig().max_prompt_tokens)[0]]
    record = head_inputs(policy, responses(policy, examples, options.rows), options.rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_suffix(".part")
    torch.save(record, partial)
    partial.replace(options.out)
    own, numbers = record["own"].float().mean().item(), summary(record)
    print(f"{len(record['targets'])} rows, {own:.0%} of them own samples, saved to {options.out}")
    print(
        f"mean NLL {numbers['nll']:.3f}, mean top-1 probability {numbers['top1']:.3f}, targets with p >= {TAU}: "
        f"{numbers['sure']:.1%}"
    )


if __name__ == "__main__":
    main()
