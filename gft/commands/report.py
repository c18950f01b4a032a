"""gft report: a page and pictures of runs."""

from __future__ import annotations

from pathlib import Path

from ..config import ReportConfig
from ..folders import write_whole
from ..options import OptionError
from ..report import plain_console
from ..report.figures import panel_figures
from ..report.page import MARK, page
from ..report.runs import read_runs


def run_report(config: ReportConfig) -> None:
    """Write the report that `config` asks for.

    Raises:
        OptionError: a folder holds no run, or --out holds something that is no report.
    """
    out = config.out
    if not config.runs:
        raise OptionError("name the runs: gft report runs/a runs/b, each the --out of gft train or gft eval.")
    _check_free(out)
    runs = read_runs(config.runs)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, page(runs, config.prompts))
        pictures = panel_figures(runs, out.with_suffix("")) if config.png else []
    except OSError as error:
        raise OptionError(f"--out {out} cannot be written: {error.strerror or error}.") from error
    said = f"    pictures: {out.with_suffix('')} ({len(pictures)} PNG)" if pictures else ""
    plain_console().print(f"report: {out}{said}", highlight=False, soft_wrap=True)


def _check_free(out: Path) -> None:
    """A report may be replaced, and nothing else."""
    if out.suffix != ".html":
        raise OptionError(f"--out is {out}: give a name that ends in .html.")
    try:
        with out.open(encoding="utf-8", errors="replace") as file:
            is_report = MARK in file.read(1000)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OptionError(f"--out {out} cannot be read: {error.strerror}. Give another name.") from error
    if not is_report:
        raise OptionError(f"--out {out} exists and is no report: give another name.")
