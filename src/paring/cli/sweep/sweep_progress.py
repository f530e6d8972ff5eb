"""Progress of a whole sweep: a live bar in a terminal, a line per trial elsewhere, nothing when not wanted."""

from __future__ import annotations

import sys
from typing import Self

from paring.cli.human import seconds
from paring.train.progress import Bar


def left(times: list[float], total: int, ended: int, workers: int) -> float | None:
    """Seconds until all is done, guessed from how long trials took so far; None before the first one ended.

    Trials that are running count as half done.

    Args:
        times: seconds of the trials that were run.
        total, ended: number of trials, and of those that are over.
        workers: trials at a time.
    """
    if not times:
        return None
    running = min(workers, total - ended)
    return sum(times) / len(times) * (total - ended - running / 2) / workers


class Progress(Bar):
    """Shows trials as they end.

    Args:
        name: of the sweep.
        total: number of trials.
        done: how many were there before.
        workers: trials at a time.
        show: False prints nothing.
    """

    def __init__(self, name: str, total: int, done: int, workers: int, show: bool) -> None:
        self.name, self.total, self.done, self.workers, self.show = name, total, done, workers, show
        self.failed = 0
        self._times: list[float] = []

    def __enter__(self) -> Self:
        if not self.show:
            return self
        missing = self.total - self.done
        print(f"{self.name}: {self.done} of {self.total} trials are there, {missing} to do", file=sys.stderr)
        if missing:
            columns = "MofNCompleteColumn", "TimeElapsedColumn"
            self.begin(self.name, self.total, *columns, completed=self.done, note=self.state())
        return self

    def state(self) -> str:
        """Where the sweep stands, in words."""
        ended = self.done + self.failed
        running = min(self.workers, self.total - ended)
        parts = [f"{self.done} of {self.total} done", f"{self.failed} failed", f"{running} running"]
        rest = left(self._times, self.total, ended, self.workers)
        return ", ".join([*parts, f"about {seconds(rest)} left"] if rest else parts)

    def ended(self, text: str, took: float, failed: bool) -> None:
        """A trial is over; `text` says how."""
        self.done, self.failed = self.done + (not failed), self.failed + failed
        self._times.append(took)
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False)
            self.update(self.done + self.failed, self.state())
        elif self.show:
            print(f"{text}\n{self.name}: {self.state()}", file=sys.stderr, flush=True)
