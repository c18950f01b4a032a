"""What a person sees: the progress line, the final tables, the figures, the page of `gft report`.

The names below are those that the loop and the commands need.
"""

from .figures import comparison_figure, run_figure
from .progress import Progress, plain_console
from .tables import accuracy_table, estimate_table, run_table

__all__ = [
    "Progress",
    "accuracy_table",
    "comparison_figure",
    "estimate_table",
    "plain_console",
    "run_figure",
    "run_table",
]
