"""What a run can use is decided before its first step: prompts that the chat template takes,
responses within the model's positions, groups that can be scored.
"""

from dataclasses import replace

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from gft.config import EMBEDDED
from gft.data.files import Example, Response
from gft.demo import sort_letters
from gft.demo.base_model import tokenizer
from gft.parts import GroupConfig, SamplingConfig
from gft.policy import make_policy
from gft.survey import measure
from gft.usable import check_examples, position_limit, usable_examples, usable_held_out

NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)


def config(experts=1, teachers=3, own=2, objective="gft", **sampling):
    return replace(
        EMBEDDED,
        objective=objective,
        group=GroupConfig(experts, teachers, own),
        sampling=SamplingConfig(**{"max_prompt_tokens": 16, "max_new_tokens": 9, **sampling}),
    )


def expert(prompt, response, origin="f:1"):
    return Example(prompt, "a", (Response(response, "expert", 1.0),), origin=origin)


def user(text, role="user"):
    return ({"role": role, "content": text},)


# Positions


@pytest.mark.parametrize(
    ("settings", "example", "words"),
    [
        (
            config(1, 0, 0),
            expert("ab=", "c" * 61),  # and the end token
            "f:1: a prompt of 3 tokens and a given response of 62 need 65 positions, and the model has 64",
        ),
        (
            config(0, 0, 2, max_new_tokens=62),
            expert("ab=", "c"),
            "f:1: a prompt of 3 tokens and a sample of 62 need 65 positions, and the model has 64",
        ),
    ],
)
def test_usable_examples_refuses_the_first_token_past_the_models_positions(policy, settings, example, words):
    with pytest.raises(ValueError, match=words):
        usable_examples(policy, [example, expert("b=", "c", "f:2")], settings, print)


def test_usable_examples_takes_the_last_position(policy):
    assert usable_examples(policy, [expert("ab=", "c" * 60)], config(1, 0, 2, max_new_tokens=61), print)


def test_usable_examples_cuts_before_it_counts_positions(policy):
    long = [expert("ab=", "c" * 200)]
    assert usable_examples(policy, long, config(1, 0, 0, max_given_tokens=61, long_given="cut"), print) == long
    with pytest.raises(ValueError, match="--max-given-tokens, which is 62 and cuts longer responses"):
        usable_examples(policy, long, config(1, 0, 0, max_given_tokens=62, long_given="cut"), print)


def test_usable_examples_counts_those_past_the_models_positions_and_only_what_is_used(policy):
    unused = Example("ab=", "a", (Response("a", "expert"), Response("c" * 100, "teacher")), origin="f:1")
    assert usable_examples(policy, [unused], config(1, 0, 0), print) == [unused]
    with pytest.raises(ValueError, match=r"so it is for 2 of 3\. Way out: lower --max-given-tokens, which is 2048"):
        usable_examples(policy, [expert("ab=", "c" * n) for n in (1, 70, 80)], config(1, 0, 0), print)


def test_usable_held_out_refuses_prompts_that_leave_no_room_for_a_response(policy):
    prompts = [Example("a" * 54 + "=", "a", origin="f:1"), Example("a" * 55 + "=", "a", origin="f:2")]
    assert usable_held_out(policy, prompts[:1], 9, 0.01) == prompts[:1]
    with pytest.raises(ValueError, match=r"f:2: a prompt of 56 tokens and a response of 9 need 65 .*--max-new-tokens"):
        usable_held_out(policy, prompts, 9, 0.01)


def test_usable_held_out_refuses_examples_without_a_solution(policy):
    with pytest.raises(ValueError, match="1 of 2 held-out examples have no solution to score with, the first: f:2"):
        usable_held_out(policy, [Example("ba=", "ab"), Example("ca=", "", origin="f:2")], 9, 0.01)


SMALL = {"vocab_size": 29, "hidden_size": 16, "num_hidden_layers": 1, "eos_token_id": 1, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=29, n_positions=40, n_embd=16, n_layer=1, n_head=2)), 40),
        (
            lambda: LlamaForCausalLM(
                LlamaConfig(
                    **SMALL,
                    intermediate_size=16,
                    num_attention_heads=2,
                    max_position_embeddings=128,
                    rope_parameters={
                        "rope_type": "yarn",
                        "rope_theta": 1e4,
                        "factor": 4.0,
                        "original_max_position_embeddings": 32,
                    },
                )
            ),
            128,
        ),
        (lambda: MambaForCausalLM(MambaConfig(**SMALL, state_size=4)), None),
    ],
    ids=["learned", "scaled rotary", "no positions"],
)
def test_position_limit_is_the_configurations(model, limit):
    assert position_limit(make_policy(model().eval(), tokenizer())) == limit


# Chat templates


@pytest.fixture
def chat(policy):
    policy.tokenizer.chat_template = NO_SYSTEM
    return policy


def test_usable_examples_names_the_row_that_the_chat_template_refuses(chat, capsys):
    examples = [Example(user("ab="), "", origin=f"d.jsonl:{i}") for i in range(1, 100)]
    examples.append(Example(user("ab=", "system"), "", origin="d.jsonl:100"))
    solved = [replace(e, solution="a") for e in examples]
    assert usable_held_out(chat, solved, 9, 0.01) == solved[:-1]
    assert capsys.readouterr().err.splitlines() == [
        "warning: d.jsonl:100: the chat template of this model refuses messages of the roles system: no system role "
        "here",
        "warning: d.jsonl: 1 of 100 rows are bad and were left out",
    ]
    with pytest.raises(ValueError, match=r"d.jsonl: 1 of 100 rows are bad.*--max-bad-fraction.*first one: d.jsonl:100"):
        usable_examples(chat, examples, replace(config(), max_bad_fraction=0.009), print)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].name.first }}",  # undefined
        "{{ messages[0].content + 1 }}",  # a TypeError of Python's
        "{{ messages[0].content | nothing }}",  # no such filter
        "{% for m in messages %}",  # not closed
    ],
)
def test_usable_held_out_names_the_row_where_a_template_fails(policy, template):
    policy.tokenizer.chat_template = template
    with pytest.raises(
        ValueError, match="no good row; the first bad one: d:1: the chat template of this model refuses messages"
    ):
        usable_held_out(policy, [Example(user("ab="), "a", origin="d:1")], 9, 1.0)


def test_usable_held_out_names_the_row_of_a_chat_without_a_template(policy):
    with pytest.raises(ValueError, match=r"no good row; the first bad one: d:1: .*has no chat template"):
        usable_held_out(policy, [Example(user("ab="), "a", origin="d:1")], 9, 1.0)


def test_measure_counts_the_tokens_of_responses_and_their_end(policy):
    example = Example("ab=", "", (Response("", "expert"), Response("abc", "teacher"), Response("abcd", "teacher")))
    (found,), bad = measure(policy, [example], config(1, 1, 0))
    assert bad == []
    assert (found.prompt, [given.tokens for given in found.responses], found.long) == (3, [1, 4], ())


def test_usable_examples_asks_the_template_for_the_end_of_an_answer_before_the_run(policy):
    """A template that takes no assistant's turn is refused here and not in the first step."""
    policy.tokenizer.chat_template = "{% if messages[-1].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}a"
    asked = [Example(user("ab="), "a", (Response("a", "expert", 1.0),), origin="d:1")]
    with pytest.raises(ValueError, match=r"d:1: .*no"):
        usable_examples(policy, asked, config(1, 0, 0), print)


def test_measure_hides_no_fault_of_another_kind(policy, monkeypatch):
    def broken(prompt):
        raise TypeError("a fault of ours")

    monkeypatch.setattr(policy, "encode_prompt", broken)
    with pytest.raises(TypeError, match="a fault of ours"):
        measure(policy, [Example("ab=", "")])


# Prompts and groups


def test_usable_examples_says_what_it_leaves_out_and_what_is_missing(policy):
    said = []
    kept = usable_examples(policy, [Example("a" * 20, "a"), Example("ba=", "ab")], config(1, 0, 2), said.append)
    assert [e.prompt for e in kept] == ["ba="]
    assert said == [
        "1 prompts are empty or longer than 16 tokens and were left out",
        "expert responses in the data: 0 a group, 1 asked for",
    ]
    with pytest.raises(ValueError, match="none of 1 prompts has 1 to 16 tokens"):
        usable_examples(policy, [Example("a" * 20, "a")], config(), said.append)


def test_check_examples_names_what_the_groups_lack():
    expert_only = Example("ba=", "ab", (Response("ab", "expert"),))
    assert check_examples([expert_only], config(1, 3, 4)) == ["teacher responses in the data: 0 a group, 3 asked for"]
    assert check_examples(sort_letters.examples(4, seed=0), config(1, 3, 0)) == []


def test_check_examples_asks_for_a_solution_only_where_a_response_needs_one():
    scored = (Response("ab", "expert", 1.0), Response("ba", "teacher", 0.0))
    unused = (
        Response("xx", "self"),
        Response("ba", "teacher"),
    )  # not of an asked-for source, and beyond the asked-for count
    assert check_examples([Example("ba=", "", scored + unused)], config(1, 1, 0)) == []


def test_check_examples_asks_for_no_solution_where_every_advantage_is_1():
    """The ablation "w/o GAL" scores nothing."""
    alike = replace(config(), group=GroupConfig(1, 0, 4, advantage="one"))
    assert check_examples([Example("ba=", "", (Response("ab", "expert"),))], alike) == []


SCORED = (Response("ab", "expert", 1.0),)


@pytest.mark.parametrize(
    ("example", "settings", "message"),
    [
        (Example("ba=", "ab", origin="x:1"), config(1, 0, 0, "sft"), "no response to train on, the first: x:1"),
        (Example("ba=", "ab", SCORED, origin="x:4"), config(0, 3, 0), "no response to train on, the first: x:4"),
        (
            Example("ba=", "", SCORED, origin="x:2"),
            config(1, 0, 4),
            "no solution to score responses with, the first: x:2",
        ),
        (Example("ba=", "", (Response("ab", "expert"),), origin="x:3"), config(1, 0, 0), "no solution to score"),
    ],
)
def test_check_examples_refuses_groups_that_could_not_learn(example, settings, message):
    with pytest.raises(ValueError, match=message):
        check_examples([example], settings)


def test_usable_examples_says_that_prompts_spell_control_tokens(policy):
    said = []
    examples = [Example("ba=", "ab"), Example("a<eos>b=", "ab", origin="d.jsonl:2")]
    assert usable_examples(policy, examples, config(0, 0, 2), said.append) == examples
    assert said[0].startswith("1 prompts spell a control token, the first: d.jsonl:2: '<eos>'. It stays ordinary text")
