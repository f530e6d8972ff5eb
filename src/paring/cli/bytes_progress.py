"""Progress of work on bytes: a live bar in a terminal, a line at the end elsewhere, nothing when not wanted."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from paring.cli.human import seconds, size
from paring.core import Progress
from paring.core.printable import printable
from paring.train.progress import Bar


class BytesProgress(Bar):
    """Shows bytes as they are done.

    Args:
        label: what is being done.
        total: bytes.
        show: False prints nothing.
    """

    def __init__(self, label: str, total: int, show: bool) -> None:
        self.label, self.total, self.show, self.done = label, total, show, 0
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        if self.show:
            self.begin(self.label, self.total, "DownloadColumn", "TimeRemainingColumn")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, trace)
        if self.show and self.bar is None and kind is None:
            print(f"{self.label}: {size(self.done)} in {seconds(time.perf_counter() - self._started)}", file=sys.stderr)

    def add(self, count: int, note: str) -> None:
        """So many bytes more are done."""
        self.done += count
        self.update(self.done, printable(note, longest=60))

    def told(self, progress: Progress) -> None:
        """So much is done by now."""
        self.add(progress.done - self.done, progress.what)
