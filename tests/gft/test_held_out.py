"""samples.jsonl: whole lines go on, half lines do not, and a run keeps no more than it says."""

import json
from dataclasses import replace

import pytest

from gft.held_out import Answer, answer_log, read_answers, write_answers

ONE = Answer(0, "a", "greedy", 0, 1.0, None, False, "p\ud800\u202e", "r\0", "s", [1, 2])


def written(path, *answers):
    with answer_log(path) as log:
        log.add(answers)


@pytest.mark.parametrize("torn", [b'{"prompt_ind', b"\n", b"[1]\n", b"\xff\xfe", b'{"reward": 1}\n'])
def test_answer_log_goes_on_behind_the_last_whole_line(tmp_path, torn):
    path = tmp_path / "samples.jsonl"
    written(path, ONE, replace(ONE, sample=1))
    with path.open("ab") as file:
        file.write(torn)
    with answer_log(path) as log:
        assert log.answers == [ONE, replace(ONE, sample=1)]
        log.add([replace(ONE, sample=2)])
    assert [a.sample for a in read_answers(path)] == [0, 1, 2]
    assert path.read_bytes().count(b"\n") == 3


def test_answer_log_drops_a_whole_answer_without_its_line_end(tmp_path):
    path = tmp_path / "samples.jsonl"
    written(path, ONE, replace(ONE, sample=1))
    path.write_bytes(path.read_bytes()[:-1])
    assert read_answers(path) == [ONE]


def test_answer_log_is_one_process_alone(tmp_path):
    with answer_log(tmp_path / "s"), pytest.raises(OSError, match="in use"), answer_log(tmp_path / "s"):
        pass


def test_write_answers_keeps_some_texts_and_every_reward(tmp_path):
    answers = [replace(ONE, prompt_index=p, source="sample", sample=k) for p in range(3) for k in range(6)]
    write_answers(tmp_path, 7, answers, prompts=2)
    path = tmp_path / "samples" / "step-7.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["prompt_index"], r["sample"]) for r in rows if "response" in r] == [
        (p, k) for p in range(2) for k in range(4)
    ]
    assert [a.reward for a in read_answers(path)] == [1.0] * 18
    write_answers(tmp_path, 7, answers[:1], prompts=2)  # a run that goes on writes its own again
    assert len(read_answers(path)) == 1
    write_answers(tmp_path, 8, answers, prompts=0)
    assert not (tmp_path / "samples" / "step-8.jsonl").exists()


def test_write_answers_tells_of_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "samples").write_text("a file")
    write_answers(tmp_path, 3, [ONE], prompts=1)
    assert "warning: the answers of step 3 are not kept" in capsys.readouterr().err
