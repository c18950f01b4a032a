"""A policy: a model, the tokenizer that belongs to it, the tokens of prompts and responses."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gft.demo.base_model import tokenizer, untrained
from gft.model.policy import make_policy


def test_make_policy_refuses_a_tokenizer_of_another_model():
    larger = tokenizer()
    larger.add_tokens(["<a>", "<b>"])
    with pytest.raises(ValueError, match="31 tokens but the head 29 rows"):
        make_policy(untrained(0), larger)


@pytest.mark.parametrize("thing", [None, "a name", untrained])
def test_make_policy_refuses_what_is_no_model_or_tokenizer(thing):
    with pytest.raises(TypeError, match=r"model is .*give a loaded"):
        make_policy(thing, tokenizer())
    with pytest.raises(TypeError, match=r"tokenizer is .*give a loaded"):
        make_policy(untrained(0), thing)


@pytest.mark.parametrize("kind", [models.WordLevel, models.BPE])
def test_responses_are_read_as_they_were_sampled(kind):
    """Folders of old say clean_up_tokenization_spaces, which takes away spaces before points."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", " ", "a", ".", "'", "m"])}
    core = Tokenizer(kind(vocabulary, **({} if kind is models.WordLevel else {"merges": []}), unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    words = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", clean_up_tokenization_spaces=True)
    policy = make_policy(untrained(0), words)
    assert policy.decode(words("a . a 'm", add_special_tokens=False).input_ids) == "a . a 'm"


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
