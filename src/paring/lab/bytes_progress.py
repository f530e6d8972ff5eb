"""Progress of work on bytes: a live bar in a terminal, a line at the end elsewhere, nothing when not wanted."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from paring.lab.human import seconds, size


class BytesProgress:
    """Shows bytes as they are done.

    Args:
        label: what is being done.
        total: bytes.
        show: False prints nothing.
    """

    def __init__(self, label: str, total: int, show: bool) -> None:
        self.label, self.total, self.show, self.done = label, total, show, 0
        self._started = time.perf_counter()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> BytesProgress:
        if self.show and sys.stderr.isatty():
            try:
                from rich import console, progress
            except ImportError:
                return self
            columns = (
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.DownloadColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[note]}"),
            )
            self._bar = progress.Progress(*columns, console=console.Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.show and kind is None:
            print(f"{self.label}: {size(self.done)} in {seconds(time.perf_counter() - self._started)}", file=sys.stderr)

    def add(self, count: int, note: str) -> None:
        """So many bytes more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=note)
