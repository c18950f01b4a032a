"""Given responses take their places in each group, are scored, and teach."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from gft_kernels import gft, reinforce
from gft_kernels.integrations.trl import GFTTrainer, given_responses

from . import tiny


def made(folder, data, given, **options):
    objective = options.pop("objective", gft(0.7))
    rectify = options.pop("rectify", "all")
    return GFTTrainer(
        tiny.folder_with_model(folder),
        copied,
        tiny.config(folder, **options),
        train_dataset=data,
        processing_class=tiny.tokenizer(),
        objective=objective,
        given=given,
        rectify=rectify,
    )


def copied(prompts, completions, **_):
    """The share of the prompt's letters that stand in their places."""
    return [
        sum(a == b for a, b in zip(text.replace(" ", ""), prompt, strict=False)) / len(prompt)
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def rollout(trainer, rows):
    trainer.model.train()
    return trainer._generate_and_score_completions(rows)


def repeated(data, group=4):
    return [row for row in data for _ in range(group)]


def test_given_responses_take_the_first_places_of_each_group(tmp_path):
    data = tiny.prompts(2)
    trainer = made(tmp_path, data, given_responses(data, tiny.tokenizer()), per_device_train_batch_size=8)
    asked = []
    generate = trainer.model.generate
    trainer.model.generate = lambda **given: asked.append(given["input_ids"]) or generate(**given)
    output = rollout(trainer, repeated(data))
    ids, mask = output["completion_ids"], output["completion_mask"].bool()
    texts = [tiny.tokenizer().decode(x[m]).replace(" ", "") for x, m in zip(ids, mask, strict=True)]
    assert [texts[i] for i in (0, 1, 4, 5)] == ["abc<eos>", "cba<eos>", "bcd<eos>", "dcb<eos>"]
    assert output["is_given"].tolist() == [True, True, False, False] * 2
    (prompts,) = asked
    assert prompts.tolist() == [[4, 5, 6]] * 2 + [[5, 6, 7]] * 2  # only the policy's own were sampled
    # The reward functions scored all alike: the copy has the best reward of its group.
    advantages = output["advantages"].view(2, 4)
    assert (advantages.argmax(1) == 0).all()
    torch.testing.assert_close(advantages.sum(1), torch.zeros(2), atol=1e-5, rtol=0)
    found = trainer._metrics["train"]
    assert found["reward/given"] == [pytest.approx(2 / 3)]  # the copy 1, the reversed one 1/3
    assert found["reward"] == [pytest.approx((found["reward/given"][0] + found["reward/own"][0]) / 2)]


def test_given_responses_are_not_used_in_evaluation(tmp_path):
    data = tiny.prompts(2)
    trainer = made(tmp_path, data, given_responses(data, tiny.tokenizer()), rectify="given")
    trainer.model.eval()
    output = trainer._generate_and_score_completions(repeated(data))
    assert "is_given" not in output
    output["advantages"] = torch.ones(8)
    nll = trainer._compute_loss(trainer.model, output)
    assert nll.item() == pytest.approx(trainer._metrics["eval"]["nll"][0])  # nothing was given, nothing is rectified
    assert "reward/given" not in trainer._metrics["eval"]


def test_groups_may_be_given_whole(tmp_path):
    data = tiny.prompts(2)
    trainer = made(
        tmp_path, data, given_responses(data, tiny.tokenizer()), num_generations=2, per_device_train_batch_size=4
    )
    assert rollout(trainer, repeated(data, 2))["is_given"].all()
    trainer._given_rows, trainer.use_vllm = repeated(data, 2), True
    _, scores = trainer._generate_single_turn([[4, 5, 6]] * 4, None, {}, 2)
    assert scores == [[None] * 4] * 4  # as many as TRL expects of vLLM, though it was not asked


def test_scores_of_the_sampler_are_unknown_for_given_tokens(tmp_path, monkeypatch):
    """TRL makes the ratio to the sampler 1 where the sampler's log-prob is None."""
    data = tiny.prompts(1)
    trainer = made(tmp_path, data, given_responses(data, tiny.tokenizer()))
    counts = []

    def sampled(self, prompt_ids, images, fields, num_generations):
        counts.append(num_generations)
        return [[9, 1] for _ in prompt_ids], [[-0.5, -0.25] for _ in prompt_ids]

    monkeypatch.setattr("trl.GRPOTrainer._generate_single_turn", sampled)
    trainer._given_rows = repeated(data)
    ids, scores = trainer._generate_single_turn([[4, 5, 6]] * 4, None, {}, 4)
    assert ids == [[4, 5, 6, 1], [6, 5, 4, 1], [9, 1], [9, 1]]
    assert scores == [[None] * 4, [None] * 4, [-0.5, -0.25], [-0.5, -0.25]]
    assert counts == [2]


@pytest.mark.parametrize("process", [0, 1])
def test_places_go_on_over_processes(process, tmp_path, monkeypatch):
    data = tiny.prompts(2)
    trainer = made(tmp_path, data, given_responses(data, tiny.tokenizer()))
    monkeypatch.setattr(type(trainer.accelerator), "process_index", process)
    assert trainer._places(6) == [[0, 1, 2, 3, 0, 1], [2, 3, 0, 1, 2, 3]][process]


def test_rectification_of_given_tokens_alone(tmp_path):
    data = tiny.prompts(2)
    given = given_responses(data, tiny.tokenizer())
    inputs = tiny.batch() | {"is_given": torch.tensor([True, False, True, False])}
    losses = {}
    for name, options in {
        "given": {"rectify": "given"},
        "all": {},
        "none": {"objective": reinforce()},
    }.items():
        trainer = made(tmp_path, data, given, **options)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        half = {}
        for who in (True, False):
            part = inputs | {"advantages": inputs["advantages"] * (inputs["is_given"] == who)}
            half[who] = tiny.loss_and_gradients(trainer, part)[0]
        losses[name] = half
    torch.testing.assert_close(losses["given"], {True: losses["all"][True], False: losses["none"][False]})
    assert abs(losses["all"][True] - losses["none"][True]) > 0.1
    assert abs(losses["all"][False] - losses["none"][False]) > 0.1


def test_conversations_are_given_as_messages(tmp_path):
    said = [{"role": "assistant", "content": "abc"}]
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": "abc"}]], "given": [[said]]})
    found = given_responses(data, tiny.tokenizer())
    assert found.tokens(data[0], 0) == [4, 5, 6, 1]
    assert (found.count, found.longest) == (1, 4)


def test_given_answers_end_as_the_chat_template_ends_them(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<bos>{{ m['content'] }}<unk>a{% endfor %}"
    said = {"given": [["abc"]]}
    chat = Dataset.from_dict({"prompt": [[{"role": "user", "content": "abc"}]], **said})
    assert given_responses(chat, tokenizer).tokens(chat[0], 0) == [4, 5, 6, 3]
    text = Dataset.from_dict({"prompt": ["abc"], **said})
    assert given_responses(text, tokenizer).tokens(text[0], 0) == [4, 5, 6, 1]
    with pytest.raises(ValueError, match=r"end with token 3, .* set model.generation_config.eos_token_id"):
        made(tmp_path, chat, given_responses(chat, tokenizer))


FAULTS = {
    "no column 'expert'": (Dataset.from_dict({"prompt": ["a"], "given": [["a"]]}), {"column": "expert"}),
    "row 1 has 1 given responses and the rows before have 2": (
        Dataset.from_dict({"prompt": ["a", "b"], "given": [["a", "b"], ["b"]]}),
        {},
    ),
    "row 0 has 'a'": (Dataset.from_dict({"prompt": ["a"], "given": ["a"]}), {}),
    "response is empty": (Dataset.from_dict({"prompt": ["a"], "given": [[""]]}), {}),
    "data set is empty": (Dataset.from_dict({"prompt": [], "given": []}), {}),
}


@pytest.mark.parametrize("said", FAULTS)
def test_given_responses_refuses(said):
    data, options = FAULTS[said]
    with pytest.raises(ValueError, match=said):
        given_responses(data, tiny.tokenizer(), **options)


def test_given_responses_refuses_what_is_no_text():
    data = Dataset.from_dict({"prompt": ["a"], "given": [[[{"role": "user", "content": "a"}]]]})
    with pytest.raises(TypeError, match="message of role 'assistant'"):
        given_responses(data, tiny.tokenizer())


def test_trainer_refuses_given_responses_that_do_not_fit(tmp_path):
    data = tiny.prompts(2)
    given = given_responses(data, tiny.tokenizer())
    with pytest.raises(ValueError, match="longest given response has 4 tokens, and max_completion_length=3"):
        made(tmp_path, data, given, max_completion_length=3)
    three = Dataset.from_dict({"prompt": ["ab"], "given": [["a", "b", "c"]]})
    with pytest.raises(ValueError, match="gives 3 responses a row, and num_generations=2"):
        made(tmp_path, three, given_responses(three, tiny.tokenizer()), num_generations=2)


def test_trainer_refuses_given_responses_it_cannot_read(tmp_path):
    data = tiny.prompts(2)
    given = given_responses(data, tiny.tokenizer())
    with pytest.raises(ValueError, match="remove_unused_columns"):
        made(tmp_path, data, given, remove_unused_columns=True)
    with pytest.raises(ValueError, match="train_dataset has no column 'given'"):
        made(tmp_path, data.remove_columns("given"), given)
    other = tiny.tokenizer()
    other.eos_token = "<bos>"
    with pytest.raises(ValueError, match=r"end with token 2, and the trainer's with \[1\]"):
        made(tmp_path, data, given_responses(data, other))
    with pytest.raises(TypeError, match="given is Dataset"):
        made(tmp_path, data, data)


def greedy_reward(trainer, data) -> float:
    """The reward of the likeliest response to each prompt."""
    tokenizer = tiny.tokenizer()
    trainer.model.eval()
    texts = []
    for row in data:
        ids = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        out = trainer.model.generate(input_ids=ids, do_sample=False, max_new_tokens=3, pad_token_id=0)
        texts.append(tokenizer.decode(out[0, ids.shape[1] :]))
    return sum(copied(data["prompt"], texts)) / len(texts)


def test_given_responses_teach_what_samples_do_not_find(tmp_path):
    """Copying three letters, which a fresh model never samples whole."""
    data = Dataset.from_dict(
        {"prompt": (texts := [tiny.LETTERS[i : i + 3] for i in range(16)]), "given": [[text] for text in texts]}
    )

    def trained(given):
        trainer = made(
            tmp_path, data, given, max_steps=60, learning_rate=1e-2, per_device_train_batch_size=32,
            max_completion_length=4, seed=1, gradient_checkpointing=False,
        )  # fmt: skip
        trainer.train()
        return greedy_reward(trainer, data)

    with_given, without = trained(given_responses(data, tiny.tokenizer())), trained(None)
    assert with_given > without + 0.3
