"""Prompt and response are the whole text, or the whole chat, up to the end token, for every kind of
tokenizer. The whole is encoded here by the tokenizer alone.
"""

import pytest

from .kinds import CHATML, END, KINDS, TEMPLATES, TURN_END, encoding

PAIRS = (("2+2=", "yo 4"), ("hi:", " yo"), ("hi", "yo"), ("2+2= ", "able\n"), ("2+2=", ""))
MERGED = (("2+2=", "4 yo"), ("2+2=\n", "\nyo"))  # byte_level and sentencepiece have "=4" and two newlines as tokens
MERGING = [name for name in KINDS if "space" in name or name == "bytes"]


def whole_text(tokenizer, text):
    """The text's tokens and its end token, which some tokenizers add themselves."""
    tokens = tokenizer(text).input_ids
    return tokens if tokens[-1:] == [END] else [*tokens, END]


def whole_chat(tokenizer, *contents):
    """The chat's tokens up to the last end token, as transformers encodes a chat."""
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), contents, strict=True)]
    tokens = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    last = max(place for place, token in enumerate(tokens) if token in (END, TURN_END))
    return tokens[: last + 1]


@pytest.mark.parametrize("kind", KINDS)
def test_text_and_response_are_the_whole_text(kind):
    encode = encoding(KINDS[kind]())
    for prompt, response in PAIRS:
        ours = encode.prompt(prompt) + encode.response(response, prompt)
        assert ours == whole_text(encode.tokenizer, prompt + response)
        assert [token for token in ours if token in encode.end_tokens] == [END]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_chat_and_response_are_the_whole_chat(kind, template):
    encode = encoding(KINDS[kind](), TEMPLATES[template])
    for question, response in PAIRS:
        prompt = ({"role": "user", "content": question},)
        tokens = encode.response(response, prompt)
        assert encode.prompt(prompt) + tokens == whole_chat(encode.tokenizer, question, response)
        assert [token in encode.end_tokens for token in tokens] == [False] * (len(tokens) - 1) + [True]


@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize("kind", MERGING)
def test_a_merge_across_the_seam_is_not_made(kind, template):
    """The policy samples after the tokens of the prompt, which must stay what they are."""
    encode = encoding(KINDS[kind](), template)
    for question, response in MERGED if template is None else MERGED[1:]:
        prompt = question if template is None else ({"role": "user", "content": question},)
        tokens = encode.response(response, prompt)
        if template is None:
            whole = whole_text(encode.tokenizer, question + response)
        else:
            whole = whole_chat(encode.tokenizer, question, response)
        ours = encode.prompt(prompt) + tokens
        assert ours != whole
        assert encode.tokenizer.decode(ours) == encode.tokenizer.decode(whole)
        assert tokens[:-1] == encode.response(response)[:-1]  # as behind any other prompt


def test_a_merge_across_the_seam_leaves_no_space_in_front():
    encode = encoding(KINDS["puts a space in front"]())
    assert encode.tokenizer.convert_ids_to_tokens(encode.response("4 yo", "2+2=")) == ["4", "▁", "yo", "</s>"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_without_its_prompt_is_encoded_as_behind_one(kind):
    encode = encoding(KINDS[kind]())
    for prompt, response in PAIRS[:1] + PAIRS[3:]:
        space = " " if kind == "word pieces" else ""  # which would be one word with the prompt
        assert encode.response(space + response) == encode.response(space + response, prompt + space)


def test_the_end_is_that_of_the_text_or_of_the_chat():
    encode = encoding(KINDS["adds both"](), CHATML)
    assert encode.response("yo", "hi")[-1] == encode.end_token("hi") == END
    assert encode.response("yo", ({"role": "user", "content": "hi"},))[-1] == TURN_END
    assert encode.response("yo")[-1] == encode.end_token() == TURN_END
    assert encode.end_tokens == {END, TURN_END}  # generation stops at both


@pytest.mark.parametrize("roles", [{"pad_token": None}, {"pad_token": "</s>"}, {"unk_token": "<pad>"}])
@pytest.mark.parametrize("template", [None, CHATML])
def test_padding_has_no_part_in_it(roles, template):
    encode, usual = (encoding(KINDS["adds both"](), template, **more) for more in (roles, {}))
    prompt = "hi" if template is None else ({"role": "user", "content": "hi"},)
    assert (encode.prompt(prompt), encode.response("yo", prompt)) == (
        usual.prompt(prompt),
        usual.response("yo", prompt),
    )


ENDED = ["4</s>", "4</s>\n", "4<|im_end|>", "4<|im_end|>\n", "4<|im_end|>\n</s>", "4</s></s> \n", "4</s>\n</s>"]


@pytest.mark.parametrize("text", ENDED)
@pytest.mark.parametrize("kind", ["adds both", "puts a space in front", "bytes"])
def test_an_end_that_is_spelled_out_is_the_end(kind, text):
    encode = encoding(KINDS[kind](), CHATML)
    for prompt in (({"role": "user", "content": "hi "},), "hi ", None):
        assert encode.response(text, prompt) == encode.response("4", prompt)
    assert encode.response_text(text) == "4"


@pytest.mark.parametrize("text", ["4 ", "4\n", "</s>4", "4</s>.", "4</S>", "4<|im_start|>"])
def test_other_text_stays_as_it_is(text):
    encode = encoding(KINDS["bytes"](), CHATML)
    assert encode.response_text(text) == encode.decode(encode.response(text)) == text


def test_white_space_before_an_end_belongs_to_the_response():
    encode = encoding(KINDS["bytes"]())
    assert encode.response_text("4 \n</s> ") == "4 \n"


def test_an_end_that_is_spelled_out_thousands_of_times_takes_no_time():
    encode = encoding(KINDS["bytes"]())
    assert encode.response_text("4" + "</s>" * 5000) == "4"
    assert encode.response_text("</s> " * 50_000 + "x") == "</s> " * 50_000 + "x"


@pytest.mark.parametrize("kind", ["bytes", "adds both"])  # transformers cleans up after all but BPE
def test_decode_leaves_out_the_end_and_nothing_else(kind):
    encode = encoding(KINDS[kind](), CHATML.replace("<|im_end|>", "<turn>"))
    encode.tokenizer.add_tokens(["<turn>"])  # an end token that the tokenizer does not call special
    encode.tokenizer.clean_up_tokenization_spaces = True
    tokens = encode.response("a . b n't")
    assert encode.tokenizer.convert_ids_to_tokens(tokens)[-1] == "<turn>"
    assert encode.decode(tokens) == "a . b n't"
    assert encode.decode(tokens[:-1]) == "a . b n't"


def test_a_text_without_tokens_is_an_empty_prompt():
    assert encoding(KINDS["adds both"]()).prompt("") == []
