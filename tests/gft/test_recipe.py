"""Recipes: options of a file, held to the types of the command line, with what is typed on top."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from gft import cli
from gft.commands import train as run_command
from gft.config import EMBEDDED, TrainConfig
from gft.options import OptionError, check_effects
from gft.recipe import read_recipe, with_recipe
from gft.record import flat, read_record

from .faults.tiny import command, make_inputs
from .test_cli_errors import line

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


def recipe(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_are_valid_configurations(path):
    """Of this version: every option is known, and none is without effect."""
    values = read_recipe(path)
    config = with_recipe(TrainConfig() if "model" in values else EMBEDDED, path)
    check_effects(config, EMBEDDED if config.model is None else TrainConfig())
    assert {name.rpartition(".")[2]: value for name, value in flat(config)}.items() >= values.items()
    assert str(config.out) == f"runs/{path.stem}"


def test_there_are_recipes():
    assert {path.stem for path in RECIPES} >= {"demo", "gsm8k-smollm2", "paper-tau-0.1", "paper-tau-0.7"}
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert all(f"(../recipes/{path.name})" in page for path in RECIPES)


def test_demo_is_the_recipe_of_the_embedded_task():
    path = ROOT / "recipes" / "demo.toml"
    assert with_recipe(TrainConfig(), path) == replace(EMBEDDED, recipe=path)


def test_recipes_of_the_paper_are_the_papers():
    best, launcher = (with_recipe(TrainConfig(), ROOT / f"recipes/paper-tau-{tau}.toml") for tau in (0.7, 0.1))
    assert (best.tau, launcher.tau) == (0.7, 0.1)
    assert replace(best, tau=0.1, out=launcher.out, recipe=launcher.recipe) == launcher
    assert best.prompt_suffix == r"Let's think step by step and output the final answer within \boxed{}."
    assert best.prompts_per_step * sum(best.composition()) == 256
    assert best.prompts_per_step * best.reuse.rollout_steps == 128
    assert 10_000 - 128 < best.steps * best.prompts_per_step <= 10_000
    assert best.steps % best.reuse.rollout_steps == best.save_every % best.reuse.rollout_steps == 0


def test_recipe_takes_flat_keys_headings_and_hyphens(tmp_path):
    path = recipe(
        tmp_path,
        'model = "m"\nlr = 1\nprompts-per-step = 3\ncount_flat = false\n[optim]\nwarmup = 2\n[group]\nscale = "none"\n',
    )
    config = with_recipe(TrainConfig(seed=5), path)
    assert (config.model, config.optim.lr, config.prompts_per_step) == (Path("m"), 1.0, 3)
    assert type(config.optim.lr) is float
    assert (config.optim.warmup, config.group.scale, config.group.count_flat, config.seed) == (2, "none", False, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 3", "there is no option step; the nearest is steps."),
        ("learning_rat = 3", "there is no option learning_rat"),
        ("[optim]\nwarm_up = 3", "there is no option warm_up; the nearest is warmup."),
        ("[optimizer]\nlr = 3.0", r"lr stands under \[optimizer\]; it belongs under \[optim\]."),
        ("[group]\nlr = 3.0", r"lr stands under \[group\]; it belongs under \[optim\]."),
        ("[optim]\nsteps = 3", r"steps stands under \[optim\]; it belongs under the top, before the first heading."),
        ("lr = 1.0\n[optim]\nlr = 1.0", "lr is there twice."),
        ("save-every = 1\nsave_every = 1", "save_every is there twice."),
        ("steps = 3.0", "steps is 3.0; it must be a whole number."),
        ("steps = true", "steps is True; it must be a whole number."),
        ("lr = true", "lr is True; it must be a number."),
        ('lr = "1e-6"', "lr is '1e-6'; it must be a number."),
        ("count_flat = 0", "count_flat is 0; it must be true or false."),
        ('scale = "groups"', "scale is 'groups'; it must be one of group, batch, none."),
        ('objective = "ppo"', "objective is 'ppo'; it must be one of sft, dft, gft"),
        ("model = 3", "model is 3; it must be a path, as text."),
        ("data = 3", "data is 3; it must be text."),
        ("steps = [3]", r"steps is \[3\]; it must be a whole number."),
        ("resume = true", "--resume is typed, and stands in no recipe."),
        ('recipe = "other.toml"', "--recipe is typed"),
        ("steps = -1", "--steps is -1; it must be at least 0."),
        ("lr = nan", "--lr is nan; it must be positive and finite."),
        ("experts = 0\nteachers = 0\nown = 0", "is empty: raise --experts"),
        ("steps = 3 3", "--recipe .* cannot be read: "),
        ("[group]\nscale = {}", "it must be one of group, batch, none."),
    ],
)
def test_recipe_refuses(tmp_path, text, message):
    with pytest.raises(OptionError, match=message) as caught:
        with_recipe(TrainConfig(), recipe(tmp_path, text))
    assert "r.toml" in str(caught.value)


def test_recipe_that_is_not_there_is_one_line(tmp_path):
    assert "--recipe" in line("train", "--recipe", tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    assert "cannot be read" in line("train", f"--recipe={tmp_path / 'b.toml'}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs")
    make_inputs(path)
    return path


def as_recipe(arguments):
    """`gft train --a b --c` as a TOML file."""
    pairs = [text.split(maxsplit=1) for text in " ".join(arguments).split("--")[1:]]
    entries = [(name, value.strip()) for name, value in pairs]
    number = re.compile(r"[-\d.e]+")
    return "".join(f"{name} = {value if number.fullmatch(value) else json.dumps(value)}\n" for name, value in entries)


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(run_command, "run_figure", lambda rows, path: path)


@pytest.mark.usefixtures("undrawn")
def test_recipe_makes_the_run_that_its_options_make(folder, tmp_path):
    """Typed options count over it, resuming needs none of it, and takes no other."""
    typed = command(folder, tmp_path / "typed")
    out = typed.index("--out")
    path = recipe(tmp_path, as_recipe(typed[1:out] + typed[out + 2 :]) + 'seed = 7\n[group]\nscale = "none"\n')
    cli.main(typed)
    from_recipe = ["train", "--recipe", str(path), "--out", str(tmp_path / "read")]
    cli.main([*from_recipe, "--seed", "0", "--scale", "group"])
    typed_config, config = (read_record(tmp_path / name)["config"] for name in ("typed", "read"))
    assert replace(config, recipe=None, out=typed_config.out) == typed_config
    assert config.recipe == path
    losses = [
        [json.loads(row).get("loss") for row in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("typed", "read")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) > 1
    cli.main(["train", "--resume", "--out", str(tmp_path / "read")])
    cli.main([*from_recipe, "--resume", "--seed", "0", "--scale", "group"])
    assert "--seed is 7, and 0 in the run" in line(*from_recipe, "--resume", "--scale", "group")


def test_recipe_without_a_model_stands_over_the_embedded_task(tmp_path):
    path = recipe(tmp_path, 'steps = 3\nout = "runs/here"\n')
    assert cli._defaults(["train", "--recipe", str(path)]) == replace(
        EMBEDDED, steps=3, out=Path("runs/here"), recipe=path
    )
    assert cli._defaults(["train", "--recipe", str(path), "--model", "m"]).optim == TrainConfig().optim


def test_recipe_may_name_the_run_to_resume(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = tmp_path / "here"
    record.mkdir()
    path = recipe(tmp_path, 'steps = 3\nout = "here"\n')
    monkeypatch.setattr(
        cli, "read_record", lambda out: {"config": TrainConfig(steps=9, seed=4)} if out == Path("here") else None
    )
    found = cli._defaults(["train", "--recipe", str(path), "--resume"])
    assert (found.seed, found.steps, found.out) == (4, 3, Path("here"))


@pytest.mark.usefixtures("undrawn")
def test_stages_of_the_page_run(folder, tmp_path, monkeypatch):
    """Every line of the page, on a tiny model; the last run begins from what the others made."""
    monkeypatch.chdir(tmp_path)
    for name, source in (("teacher", "base"), ("base", "base"), ("train.jsonl", "train.jsonl")):
        (tmp_path / name).symlink_to(folder / source)
    (block,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text(), flags=re.DOTALL)
    lines = [shlex.split(text) for text in block.splitlines()]
    tiny = ["--max-new-tokens", "6", "--reward", "gft.demo.sort_letters:reward", "--device", "cpu"]
    for program, name, *options in lines:
        assert program == "gft"
        steps = ["--steps", "1", "--prompts-per-step", "1"] if name == "train" else ["--keep-truncated"]
        unrewarded = "sft" in options
        cli.main([name, *options, *(tiny[:2] + tiny[4:] if unrewarded else tiny), *steps])
    assert (tmp_path / "runs/grpo/model/model.safetensors").exists()
    assert [words[1] for words in lines] == ["sample", "train", "train", "train"]


def test_recipe_takes_a_list_where_an_option_takes_several(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('log-to = ["wandb", "tensorboard"]\n')
    assert read_recipe(path) == {"log_to": ("wandb", "tensorboard")}
    path.write_text('log-to = "wandb"\n')
    with pytest.raises(
        OptionError, match="log_to is 'wandb'; it must be a list, each one of tensorboard, trackio, wandb"
    ):
        read_recipe(path)
    path.write_text('log-to = ["paper"]\n')
    with pytest.raises(OptionError, match="log_to is 'paper'; it must be one of tensorboard, trackio, wandb"):
        read_recipe(path)
