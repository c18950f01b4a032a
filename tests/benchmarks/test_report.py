"""The tables and figures of README and docs are the CSV's, and rows of older code are named."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.heads.names import NAMES, SHORT
from benchmarks.record import append_rows, newest_run
from benchmarks.report import __main__ as report
from benchmarks.report import plot, staleness, tables
from benchmarks.report.style import digest, spread
from benchmarks.timing.runner import FIELDS

ROOT = Path(__file__).parents[2]
MACHINE = {"date": "2027-01-01", "commit": "abc1234", "device": "cpu x86_64", "threads": "2", "torch": "2.13.0"}
SHAPE = {"case": "small gft-batch", "N": "1024", "D": "512", "V": "32768", "masked": "0.3", "flat": "0.25"}
TIMED = {"dtype": "float32", "inputs": "random", "mode": "full", "ratio_to_eager": "1.25", "over_bare_gemms": "1.1"}


def row(provider, ms, peak="100", **changed):
    """A row of the head benchmark, made up; without `ms` it is one of a provider left out."""
    measured = {"ms": ms, "peak_mib": peak, "dh_error": "2.0e-06", "dw_error": "1.0e-06"}
    timed = TIMED | measured if ms else {"dtype": "float32", "inputs": "random", "ms": ""}
    return MACHINE | SHAPE | timed | {"provider": provider} | changed


@pytest.mark.parametrize("page", report.PAGES)
def test_render_leaves_the_page_as_it_is(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert report.render(text, page) == text


@pytest.mark.parametrize("page", report.PAGES)
def test_render_needs_a_place_for_every_table(page):
    first = next(iter(report.PAGES[page]))
    with pytest.raises(ValueError, match=f"{page} has 0 places for {first}"):
        report.render("# nothing", page)


def test_every_place_for_a_table_is_filled():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        places = re.findall(r"<!-- ([\w-]+) -->", page.read_text(encoding="utf-8"))
        assert {*places} - {"end"} == {*report.PAGES.get(str(page.relative_to(ROOT)), {})}


@pytest.mark.parametrize("name", plot.figures())
def test_figures_are_drawn_from_the_rows_present(name):
    _, rows = plot.figures()[name]
    text = (plot.FIGURES / name).read_text(encoding="utf-8")
    assert f"rows {digest(rows)}" in text, "run python -m benchmarks.report"


def test_figures_are_all_accounted_for():
    assert {path.name for path in plot.FIGURES.iterdir()} == set(plot.figures())


def test_tables_take_one_run_only():
    rows = [row("eager", "1", commit="a"), row("gone", "2", commit="a"), row("eager", "3", commit="b")]
    assert {name: row["ms"] for name, row in newest_run(rows, case="small gft-batch").items()} == {"eager": "3"}


def test_summary_has_eager_the_best_peer_and_both_of_ours(tmp_path):
    rows = [row("bare-gemms", "5"), row("eager", "90"), row("trl", "80", "70"), row("liger-grpo", "70", "60")]
    left_out = row("verl-torch", "", note="dh_error 1.0e-01: over 1e-03, not timed")
    rows += [left_out, row("gft-chunked", "50"), row("gft-sparse-chunked", "40"), row("gft-logprob-chunked", "30")]
    append_rows(tmp_path / "cpu.csv", rows, FIELDS)
    table, text = tables.summary_table(tmp_path).split("\n\n")
    lines = table.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| eager logits",
        "| best peer: Liger, chunked GRPO head",
        "| **gft-kernels**, exact",
        "| **gft-kernels**, column-sparse",
    ]
    assert lines[3] == "| best peer: Liger, chunked GRPO head | 70 ms | 1.25x | 60 MiB | 2e-06 |"
    where = "float32 on 2 CPU threads (x86_64), torch 2.13.0: 1024 tokens, hidden size 512, vocabulary 32k; 30%"
    assert where in text.replace("\n", " ")


def test_summary_is_of_the_gpu_once_it_has_rows(tmp_path):
    append_rows(tmp_path / "cpu.csv", [row("eager", "90")], FIELDS)
    published = {"case": "published gft-batch", "N": "8192", "device": "NVIDIA H100", "dtype": "bfloat16"}
    names = ("eager", "cce", "gft-chunked", "gft-sparse-chunked", "gft-triton", "gft-sparse-triton")
    times = ("9", "3", "8", "7", "2", "1")
    append_rows(tmp_path / "gpu.csv", [row(*pair, **published) for pair in zip(names, times, strict=True)], FIELDS)
    text = tables.summary_table(tmp_path)
    assert re.findall(r"([\d.]+) ms", text) == ["9.00", "3.00", "2.00", "1.00"]
    assert "bfloat16 on NVIDIA H100" in text.replace("\n", " ")


def test_best_peer_needs_one():
    with pytest.raises(ValueError, match="No peer was timed"):
        tables.best_peer({"eager": row("eager", "1"), "trl": row("trl", ""), "gft-chunked": row("gft-chunked", "1")})


def test_every_head_has_a_short_name():
    assert NAMES.keys() - SHORT.keys() == {"liger", "gft-kernels"}  # the loop's, in no figure


def test_figures_show_a_head_that_was_left_out_and_lines_that_end_early(tmp_path):
    names = ["eager", "cce", "gft-chunked", "gft-triton"]
    sizes = [("published gft-batch", N, "131072") for N in ("1024", "8192")] + [("V=32768 gft-batch", "8192", "32768")]
    rows = [
        row(name, "2", case=case, N=N, V=V) for case, N, V in sizes for name in names if (name, N) != ("cce", "8192")
    ]
    rows += [row("cce", "", case="published gft-batch", N="8192", note="OutOfMemoryError: CUDA out of memory")]
    append_rows(tmp_path / "gpu.csv", rows, FIELDS)
    found = plot.figures(tmp_path)
    assert set(found) == {"gpu.svg", "gpu-scaling.svg"}
    for name, (draw, chosen) in found.items():
        assert {row["provider"] for row in chosen} == {"eager", "cce", "gft-triton"}
        draw(chosen, tmp_path / name)
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert digest(chosen) in text
        assert f'width="{72 * 6.25:g}pt"' in text  # 600 pixels


@pytest.mark.parametrize("wanted", [[0.1, 0.5, 0.9], [0.5, 0.5, 0.5, 0.52], [0.0, 0.01, 0.02], [1.0, 0.99, 0.98, 0.2]])
def test_spread_keeps_the_order_the_gap_and_the_range(wanted):
    found = spread(wanted, 0.1, 0.0, 1.0)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    heights = [found[i] for i in order]
    assert all(b - a > 0.1 - 1e-9 for a, b in itertools.pairwise(heights))
    assert min(found) > -1e-9
    assert max(found) < 1 + 1e-9


def test_spread_moves_nothing_that_has_room_and_centres_what_has_not():
    assert spread([0.7, 0.1, 0.4], 0.1, 0.0, 1.0) == pytest.approx([0.7, 0.1, 0.4])
    assert spread([0.5, 0.52, 0.9], 0.1, 0.0, 1.0) == pytest.approx([0.46, 0.56, 0.9])


@pytest.fixture
def repository(tmp_path):
    """A repository with one engine for CPUs and one for GPUs; `commit` returns a new one's name."""

    def git(*arguments):
        options = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *options, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit():
        git("add", "-A")
        git("commit", "-q", "--allow-empty", "-m", "one")
        return git("rev-parse", "--short", "HEAD")

    git("init", "-q")
    for name in ("losses/objectives", "engines/chunked", "engines/triton/forward", "ops/plan", "check"):
        path = tmp_path / "gft_kernels" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('def f(x):\n    """It doubles."""\n    return x + x\n')
    return tmp_path, commit


def change(root, name, text="def f(x):\n    return 2 * x\n"):
    (root / "gft_kernels" / f"{name}.py").write_text(text)


def test_stale_names_what_changed_since(repository):
    root, commit = repository
    rows = [row("eager", "1", commit=commit())]
    assert staleness.stale(rows, root) == []
    change(root, "check")  # measures nothing
    change(root, "engines/triton/forward")  # does not run on a CPU
    assert staleness.stale(rows, root) == []
    on_gpu = [rows[0] | {"device": "NVIDIA H100"}]
    assert staleness.stale(on_gpu, root) == [
        f"rows of {rows[0]['commit']}; gft_kernels changed since in: engines/triton/forward.py"
    ]
    change(root, "engines/chunked")
    commit()
    change(root, "ops/plan")  # not committed yet
    assert staleness.stale(rows, root) == [
        f"rows of {rows[0]['commit']}; gft_kernels changed since in: engines/chunked.py, ops/plan.py"
    ]


def test_stale_ignores_comments_docstrings_and_layout(repository):
    root, commit = repository
    rows = [row("eager", "1", commit=commit())]
    change(root, "engines/chunked", 'def f(x):\n    """Twice."""\n    # a sum\n    return (\n        x + x\n    )\n')
    assert staleness.stale(rows, root) == []
    (root / "gft_kernels" / "ops" / "plan.py").unlink()
    assert [warning.split(": ")[1] for warning in staleness.stale(rows, root)] == ["ops/plan.py"]


def test_stale_tells_unknown_commits_and_changed_trees(repository):
    root, commit = repository
    name = commit()
    rows = [row("eager", "1", commit=f"{name}+"), row("eager", "1", commit="fffffff")]
    assert staleness.stale(rows, root) == [
        f"rows of {name}+: measured on a tree with changes that were not committed",
        "rows of fffffff, a commit that this checkout does not have",
    ]


def test_every_measured_table_is_watched():
    shown = {name for page in report.PAGES.values() for name in page} | plot.figures().keys()
    assert shown - staleness.shown_rows().keys() == {*staleness.RUN_AGAIN}
    assert all(rows for name, rows in staleness.shown_rows().items() if name != "gpu-table")
