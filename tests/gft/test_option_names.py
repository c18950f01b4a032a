"""Options that messages, docstrings and pages name exist."""

import ast
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import gft
from gft.commands.data import CheckConfig
from gft.config import EvaluateConfig, ReportConfig, TrainConfig
from gft.options import option
from gft.sample import SampleConfig

ROOT = Path(gft.__file__).parents[1]


def real_options():
    configs = (TrainConfig, EvaluateConfig, ReportConfig, SampleConfig, CheckConfig)
    found = {option(field.name) for config in configs for field in leaves(config)} - {"--runs"}  # they need no name
    switches = {
        "count-flat",
        "overwrite",
        "packed",
        "resume",
        "dropout",
        "checkpointing",
        "liger",
        "keep-truncated",
        "png",
    }
    return found | {f"--no-{name}" for name in switches} | {"--help"}


def leaves(config):
    for field in fields(config):
        if is_dataclass(field.default_factory):
            yield from leaves(field.default_factory)
        else:
            yield field


def texts():
    """(where, text): messages and docstrings of gft, and what pages say of its commands."""
    for path in sorted((ROOT / "gft").rglob("*.py")):
        if path.name == "smollm2.py":  # a command of its own, which also speaks of pip's options
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for command in re.findall(
            r"(?:`|^)gft (?:train|eval|sample|report|data check)[^`\n]*|`--[^`\n]*`", page.read_text(), re.MULTILINE
        ):
            yield str(page.relative_to(ROOT)), command


# Of other commands, which pages name without their command.
OTHERS = {
    "docs/benchmarks.md": {"--set", "--modes"},
    "docs/column-sparse.md": {"--set"},
    "docs/integrations/recipes.md": {"--enable_dft_loss"},
    "docs/distributed-runs.md": {"--nproc-per-node", "--shutdown-timeout", "--signals-to-handle", "--max-restarts"},
}


def test_options_that_are_named_exist():
    named = [(where, name) for where, text in texts() for name in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", text)]
    unknown = [(where, name) for where, name in named if name not in real_options() | OTHERS.get(where, set())]
    assert not unknown
    assert {"--overwrite", "--max-bad-fraction", "--max-given-tokens", "--eval-data"} <= {name for _, name in named}
    assert {"README.md", "CHANGELOG.md", "docs/method.md"} <= {where for where, _ in named}


def test_real_options_are_those_of_the_command_line(helptext):
    assert real_options() == set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", helptext))
