"""The KL to the base: against the models' own logits, in fp64."""

import copy
import math

import pytest
import torch

from gft.demo import sort_letters
from gft.demo.base_model import tokenizer, untrained
from gft.divergence import check_same_tokens, kl_to_base, members_of, response_logprobs
from gft.evaluate import evaluate
from gft.policy import make_policy

EXAMPLES = sort_letters.examples(4, seed=2)
TEMPERATURE = 0.7


@pytest.fixture
def base(policy):
    """Another model with the policy's tokens."""
    model = copy.deepcopy(policy.model)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return make_policy(model, tokenizer(), TEMPERATURE)


@pytest.fixture
def policy():
    return make_policy(untrained(seed=0).eval(), tokenizer(), TEMPERATURE)


@pytest.fixture
def answers(policy, rewards):
    kept = []
    evaluate(policy, EXAMPLES, rewards, samples=3, max_new_tokens=6, temperature=TEMPERATURE, keep=kept.extend)
    return [a for a in kept if a.source == "sample"]


def written_out(policy, answer):
    """[tokens] log p from full logits, one sequence at a time."""
    prompt = policy.encode_prompt(EXAMPLES[answer.prompt_index].prompt)
    with torch.no_grad():
        logits = policy.model(torch.tensor([prompt + answer.tokens])).logits[0, len(prompt) - 1 : -1].double()
    return (logits / TEMPERATURE).log_softmax(-1)[range(len(answer.tokens)), answer.tokens]


def test_response_logprobs_are_those_of_the_models_logits(policy, base, answers):
    members = members_of(policy, EXAMPLES, answers)
    for model in (policy, base):
        found = response_logprobs(model, members, batch=5)
        for answer, logprobs in zip(answers, found, strict=True):
            assert logprobs == pytest.approx(written_out(model, answer).tolist(), abs=2e-5)


def test_kl_to_base_is_the_mean_of_its_estimators(policy, base, answers):
    own, theirs = ([written_out(model, a) for a in answers] for model in (policy, base))
    k1 = [sum(p - q).item() for p, q in zip(own, theirs, strict=True)]
    k3 = [sum((q - p).exp() - 1 - (q - p)).item() for p, q in zip(own, theirs, strict=True)]
    tokens, count = sum(len(p) for p in own), len(answers)
    found = kl_to_base(answers, [p.tolist() for p in own], [q.tolist() for q in theirs])
    expected = {"kl": sum(k1) / count, "kl_k3": sum(k3) / count}
    expected |= {"kl_token": sum(k1) / tokens, "kl_k3_token": sum(k3) / tokens}
    assert {name: value.value for name, value in found.items()} == pytest.approx(expected)
    assert found["kl"].low < found["kl"].value < found["kl"].high
    assert found["kl_k3"].value > 0.01


def test_kl_to_itself_is_nothing(policy, answers):
    own = response_logprobs(policy, members_of(policy, EXAMPLES, answers), batch=99)
    assert all(value == (0.0, 0.0, 0.0) for value in kl_to_base(answers, own, own).values())


def test_both_estimators_agree_on_many_samples(policy, base, rewards):
    """Each has the KL for its mean, so that they meet where samples are many."""
    kept = []
    evaluate(
        policy,
        EXAMPLES[:1],
        rewards,
        samples=600,
        max_new_tokens=2,
        temperature=TEMPERATURE,
        batch=600,
        keep=kept.extend,
    )
    sampled = [a for a in kept if a.source == "sample"]
    members = members_of(policy, EXAMPLES, sampled)
    own, theirs = (response_logprobs(model, members, batch=600) for model in (policy, base))
    found = kl_to_base(sampled, own, theirs)
    assert math.isclose(found["kl"].value, found["kl_k3"].value, rel_tol=0.2)


def test_check_same_tokens_refuses_another_vocabulary(policy):
    other = make_policy(untrained(0).eval(), tokenizer())
    check_same_tokens(policy, other, "--base")
    other.tokenizer.add_tokens(["new"])
    with pytest.raises(ValueError, match="--base has another vocabulary than --model \\(1 tokens differ\\)"):
        check_same_tokens(policy, other, "--base")
