"""Progress of `paring prune`: what it does now, and in a terminal a live bar of the training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Self

from paring.core import Progress
from paring.train.progress import Bar

_LINES = 10  # of each training, where there is no terminal


class PruneProgress(Bar):
    """Shows the training of each network.

    Args:
        label: what is pruned.
        folder: where `prune` keeps its choices: the last one says which network is trained.
        sizes: the budgets, as text.
        epochs: of each training.
        show: False prints nothing.
    """

    def __init__(self, label: str, folder: Path, sizes: list[str], epochs: int, show: bool) -> None:
        self.label, self.folder, self.sizes, self.epochs, self.show = label, folder, sizes, epochs, show

    def __enter__(self) -> Self:
        if self.show:
            self.begin(
                self.label, 1000 * len(self.sizes), "TaskProgressColumn", "TimeElapsedColumn", note="choosing what goes"
            )
            if self.bar is None:
                print(f"{self.label}: choosing what goes for {self.sizes[0]}", file=sys.stderr, flush=True)
        return self

    def told(self, progress: Progress) -> None:
        """One step of a training is done."""
        if not self.show:
            return
        done, steps = progress.done, progress.total or 1
        number = max(len(list(self.folder.glob("choice-*.pt"))) - 1, 0)
        size, each = self.sizes[number], max(steps // max(self.epochs, 1), 1)
        note = f"{size}: {progress.what}"
        if done == steps and number + 1 < len(self.sizes):
            note = f"choosing what goes for {self.sizes[number + 1]}"
        self.update(1000 * number + 1000 * done // steps, note)
        epoch = done // each
        if self.bar is None and done % each == 0 and (done == steps or epoch % max(1, self.epochs // _LINES) == 0):
            print(f"{self.label}: {size}: {progress.what} ({epoch}/{self.epochs})", file=sys.stderr, flush=True)


class GroupsProgress(Bar):
    """Shows how many groups were looked at.

    Args:
        label: what is looked at.
        show: False prints nothing.
    """

    def __init__(self, label: str, show: bool) -> None:
        self.label, self.show = label, show

    def told(self, progress: Progress) -> None:
        """One group more was looked at."""
        if not self.show:
            return
        total = progress.total or 1
        if progress.done == 1:
            self.begin(self.label, total, "TaskProgressColumn", "TimeElapsedColumn")
        self.update(progress.done, progress.what)
        if self.bar is None and (progress.done == total or progress.done % max(1, total // _LINES) == 0):
            print(f"{self.label}: {progress.done} of {total} groups", file=sys.stderr, flush=True)
