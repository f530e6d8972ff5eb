"""Progress of a training run: a live bar in a terminal, a line now and then elsewhere, nothing when not wanted."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self


class Bar:
    """A live bar on stderr, with a note behind it; where there is no terminal, or no rich, `bar` stays None."""

    bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self, label: str, total: int, *columns: str, completed: int = 0, note: str = "") -> None:
        """Show the bar. columns: names of rich's columns behind the label and the bar itself."""
        if not sys.stderr.isatty():
            return
        try:
            from rich import console, progress
        except ImportError:
            return
        shown = [progress.TextColumn("{task.description}"), progress.BarColumn()]
        shown += [getattr(progress, name)() for name in columns]
        self.bar = progress.Progress(
            *shown, progress.TextColumn("{task.fields[note]}", markup=False), console=console.Console(stderr=True)
        )
        self.bar.start()
        self._task = self.bar.add_task(label, total=total, completed=completed, note=note)

    def update(self, completed: int, note: str) -> None:
        """So much is done."""
        if self.bar is not None:
            self.bar.update(self._task, completed=completed, note=note)


class Progress(Bar):
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

    def __enter__(self) -> Self:
        if self.show:
            self.begin(self.label, self.epochs, "TaskProgressColumn", "TimeRemainingColumn", "TimeElapsedColumn")
        return self

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
        self.update(done, note)
        if self.bar is None and (done == self.epochs or done % max(1, self.epochs // 10) == 0):
            print(
                f"{self.label}: epoch {done}/{self.epochs}  {note}  {row['seconds']:.0f} s", file=sys.stderr, flush=True
            )
