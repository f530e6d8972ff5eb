"""Evidence that is no list of experiments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Computed:
    """A results file made by a function.

    Args:
        name: of the command and of the results file.
        about: one line for `--help`.
        run: takes the folders of results and of runs, the number of seeds and the command, and writes the file.
    """

    name: str
    about: str
    run: Callable[[Path, Path, int, str], None]
