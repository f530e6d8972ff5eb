"""Progress of a compression: every candidate on a line, and in a terminal a live bar of the training in between."""

from __future__ import annotations

import sys
from typing import Self

from paring.cli.human import exact
from paring.compression import Step
from paring.core import Progress
from paring.train.progress import Bar


class CompressProgress(Bar):
    """Shows what `compress` and its training report.

    Args:
        label: what is being compressed.
        show: False prints nothing.
    """

    def __init__(self, label: str, show: bool) -> None:
        self.label, self.show = label, show

    def __enter__(self) -> Self:
        if self.show:
            self.begin(self.label, 100, "TaskProgressColumn", "TimeElapsedColumn")
        return self

    def trained(self, progress: Progress) -> None:
        """So many steps of this part of the training are done."""
        done, steps = progress.done, progress.total or 1
        self.update(100 * done // steps, f"step {done:,} of {steps:,}")

    def offered(self, progress: Progress) -> None:
        """A candidate was judged."""
        step: Step = progress.step
        if not self.show:
            return
        mark = "best so far" if step.best else "within" if step.within else "not within"
        told = " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in step.settings.items())
        line = f"  {exact(step.bytes):>12} bytes  loss {step.loss:.5f}  {mark:<12} {told}"
        if self.bar is not None:
            self.bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)
