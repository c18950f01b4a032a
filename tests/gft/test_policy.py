"""Taking a model apart: the head's transforms are the model's own, or it is refused."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    Qwen2Config,
)

from gft.demo.base_model import tokenizer, untrained
from gft.policy import load_policy, make_policy
from gft_kernels import linear_logprob
from gft_kernels.integrations.hf import split_head

SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),  # untied head, nothing more
    "qwen2-tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "gemma2-softcap": Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.5),
    "granite-divides": GraniteConfig(**SIZES, logits_scaling=4.0),
    "cohere-multiplies": CohereConfig(**SIZES, logit_scale=0.25),
    "gpt2": GPT2Config(vocab_size=31, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=1),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_split_head_gives_the_models_own_logprobs(name, temperature):
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    parts = split_head(model, temperature=temperature)
    tokens = torch.randint(3, 31, (2, 7))
    hidden = parts.backbone(input_ids=tokens).last_hidden_state[:, :-1].flatten(0, 1)
    targets = tokens[:, 1:].flatten()
    found = linear_logprob(hidden, parts.weight, targets, head=parts.head).logprobs
    expected = (model(tokens).logits[:, :-1] / temperature).log_softmax(-1).flatten(0, 1)[torch.arange(12), targets]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert parts.weight is model.get_output_embeddings().weight


def test_split_head_refuses_unknown_transforms():
    model = AutoModelForCausalLM.from_config(CONFIGS["granite-divides"]).eval()
    forward = model.forward
    model.forward = lambda *a, **k: _times_three(forward(*a, **k))
    with pytest.raises(ValueError, match=r"GraniteForCausalLM: log-probs .* differ from its own by"):
        split_head(model)


def _times_three(output):
    output.logits = output.logits * 3
    return output


def test_split_head_refuses_an_adapted_head():
    class Adapted(torch.nn.Linear):
        pass

    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    model.set_output_embeddings(Adapted(16, 31, bias=False))
    with pytest.raises(TypeError, match=r"head is Adapted, not nn\.Linear"):
        split_head(model)


def test_make_policy_refuses_a_tokenizer_of_another_model():
    larger = tokenizer()
    larger.add_tokens(["<a>", "<b>"])
    with pytest.raises(ValueError, match="31 tokens but the head 29 rows"):
        make_policy(untrained(0), larger)


def test_load_policy_names_the_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no transformers model"):
        load_policy(tmp_path / "nothing")


def test_encode_prompt_wants_a_chat_template_for_messages(policy):
    assert policy.decode(policy.encode_prompt("abc=")) == "abc="
    with pytest.raises(ValueError, match="no chat template"):
        policy.encode_prompt(({"role": "user", "content": "abc="},))


def test_encode_response_ends_with_the_end_token(policy):
    assert policy.encode_response("cab")[-1] == policy.tokenizer.eos_token_id
    assert policy.encode_response("") == [policy.tokenizer.eos_token_id]


def test_encode_response_ends_as_the_chat_template_does(policy):
    """A model whose turns end with another token than its eos, as Gemma's do."""
    letter = policy.tokenizer("z").input_ids[0]
    policy.model.generation_config.eos_token_id = [1, letter]
    turn = "{% if m['role'] == 'assistant' %}z{% else %}={% endif %}"
    policy.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}" + turn + "{% endfor %}"
    assert policy.encode_response("cab")[-1] == letter
    assert policy.end_tokens == {1, letter}


def test_split_head_leaves_every_module_in_its_mode():
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).train()
    model.model.layers[0].eval()
    split_head(model)
    assert model.training
    assert not model.model.layers[0].training
