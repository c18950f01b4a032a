"""Chat templates that do not write an answered chat as the prompt and more: right, or refused in
one line.
"""

import pytest

from .kinds import CHATML, END, KINDS, TURN_END, characters, encoding

QUESTION = ({"role": "user", "content": "hi"},)
SYSTEM = ({"role": "system", "content": "Be kind."}, *QUESTION)

# Mistral's: the system's message goes into the last turn, if that is the user's.
LAST_TURN = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}{{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
# DeepSeek-R1's: a prompt opens the reasoning, an answered chat has none.
REASONING = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>{% else %}"
    "{{ m.content.split('</think>')[-1] | trim }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<think>\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def shown(encode, tokens):
    return "".join(encode.tokenizer.convert_ids_to_tokens(tokens))


def test_a_prompt_that_is_written_differently_once_answered_keeps_its_own_tokens():
    encode = encoding(characters(), LAST_TURN)
    assert shown(encode, encode.prompt(SYSTEM)) == "[INST] Be kind.\nhi [/INST]"
    assert shown(encode, encode.response("yo", SYSTEM)) == " yo</s>"


def test_a_template_that_opens_the_reasoning_gets_the_rest_of_the_response():
    encode = encoding(characters(), REASONING)
    assert shown(encode, encode.prompt(QUESTION)).endswith("<|im_end|><think>\n")
    tokens = encode.response("<think>\nhm</think>\nyo", QUESTION)
    assert shown(encode, tokens) == "hm</think>\nyo</s>"


def test_a_response_without_the_reasoning_that_the_template_opens_is_refused():
    with pytest.raises(ValueError, match=r"ends prompts with '<think>\\n', which .* does not begin with it: 'yo'"):
        encoding(characters(), REASONING).response("yo", QUESTION)


def test_a_template_that_takes_the_reasoning_away_is_refused():
    template = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    encode = encoding(characters(), template)
    assert shown(encode, encode.response("yo", QUESTION)) == "yo<|im_end|>"
    with pytest.raises(ValueError, match=r"template of the model changes the response '<think>hm</think>yo' to 'yo"):
        encode.response("<think>hm</think>yo", QUESTION)


def test_a_template_that_writes_other_prompts_is_refused():
    template = "{% if messages | length > 1 %}Answered. {% endif %}" + CHATML
    with pytest.raises(ValueError, match=r"writes a prompt differently once it is answered: 'Answered\. <\|im_start"):
        encoding(characters(), template).response("yo", QUESTION)


def test_a_template_without_an_end_token_gets_eos():
    encode = encoding(characters(), PLAIN)
    assert shown(encode, encode.prompt(QUESTION) + encode.response("yo", QUESTION)) == "user: hi\nassistant: yo</s>"
    assert encode.end_tokens == {END}


def test_a_template_of_questions_alone_is_continued_as_a_text():
    encode = encoding(characters(), "Q: {{ messages[-1].content if messages[-1].role == 'user' else 'none' }}\nA:")
    tokens = encode.prompt(QUESTION) + encode.response(" yo</s>", QUESTION)
    assert shown(encode, tokens) == "Q: hi\nA: yo</s>"


def test_a_template_that_leaves_the_answer_out_is_refused():
    with pytest.raises(ValueError, match="leaves out what the assistant says"):
        encoding(characters(), CHATML.replace("m.content", "'x'")).response("yo", QUESTION)


def test_a_template_that_knows_no_generation_prompt_puts_the_turns_opening_into_the_response():
    encode = encoding(characters(), CHATML.partition("{% if add")[0])
    assert shown(encode, encode.response("yo", QUESTION)) == "<|im_start|>assistant\nyo<|im_end|>"


@pytest.mark.parametrize(
    "trouble", ["{{ raise_exception('no system role') }}", "{{ messages[9].content }}", "{% end %}"]
)
def test_a_template_that_fails_is_one_line(trouble):
    with pytest.raises(
        ValueError, match="chat template of the model refuses messages of the roles system, user: "
    ) as e:
        encoding(characters(), "{% if messages[0].role == 'system' %}" + trouble + "{% endif %}" + CHATML).prompt(
            SYSTEM
        )
    assert "\n" not in str(e.value)


def test_an_end_token_in_the_middle_of_a_response_is_refused():
    """The model lists an ordinary letter as an end: nothing can be written around it."""
    encode = encoding(characters(), configured=(END, characters().token_to_id("z")))
    assert shown(encode, encode.response("yo", "hi")) == "yo</s>"
    with pytest.raises(ValueError, match="must hold an end token once, as its last"):
        encode.response("jazzy", "hi")


def test_turns_may_end_with_a_token_that_is_not_special():
    encode = encoding(KINDS["bytes"](), CHATML.replace("<|im_end|>", "<turn>"))
    encode.tokenizer.add_tokens(["<turn>"])
    tokens = encode.response("yo <turn> yo<turn>", QUESTION)
    assert encode.tokenizer.decode(tokens) == "yo <turn> yo<turn>"
    assert [token in encode.end_tokens for token in tokens].count(True) == 1


def test_the_turns_end_is_an_end_of_samples():
    assert encoding(characters(), CHATML, configured=()).end_tokens == {END, TURN_END}


def test_a_text_needs_no_template_that_works():
    encode = encoding(characters("<s> $A"), "{{ raise_exception('tools wanted') }}")
    assert shown(encode, encode.prompt("hi</s>") + encode.response("yo", "hi</s>")) == "<s>hi</s>yo</s>"
    with pytest.raises(ValueError, match="refuses messages of the roles user: tools wanted"):
        encode.response("yo", QUESTION)
