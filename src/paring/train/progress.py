"""Progress of a training run: a live bar in a terminal, a line now and then elsewhere, nothing when not wanted."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Progress:
    """Shows epochs as they finish.

    Args:
        label: what is being trained.
        epochs: how many epochs there will be.
        show: False prints nothing at all.
    """

    def __init__(self, label: str, epochs: int, show: bool) -> None:
        self.label = label
        self.epochs = epochs
        self.show = show
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.show and sys.stderr.isatty():
            try:
                from rich import console, progress
            except ImportError:
                return self
            columns = (
                *progress.Progress.get_default_columns(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("{task.fields[note]}"),
            )
            self._bar = progress.Progress(*columns, console=console.Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.epochs, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def epoch(self, row: dict[str, Any]) -> None:
        """One epoch is over; `row` is its record."""
        if not self.show:
            return
        done = row["epoch"]
        note = f"loss {row['loss']:.4f}"
        if row.get("error") is not None:
            note += f"  validation error {row['error']:.2f} %"
        if row.get("support_parameters") is not None:
            note += f"  kept {row['support_parameters']:,.0f} parameters"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif done == self.epochs or done % max(1, self.epochs // 10) == 0:
            print(
                f"{self.label}: epoch {done}/{self.epochs}  {note}  {row['seconds']:.0f} s", file=sys.stderr, flush=True
            )
