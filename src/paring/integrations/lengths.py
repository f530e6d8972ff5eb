"""Whether a trainer takes as many steps as a run was told."""

from __future__ import annotations

from paring.core import attached
from paring.run import Run


def say_length(run: Run, who: str, steps: float) -> None:
    """Say so when schedules of the method were made for another length of training.

    Args:
        run: the run.
        who: the trainer, for the message.
        steps: optimizer steps that it will take; negative or infinite when it does not know.
    """
    told = run.clock.steps
    if told is not None and run.method.rounds == 1 and 0 < steps < float("inf") and int(steps) != told:
        attached(run.net).say(
            f"the {who} takes {int(steps):,} optimizer steps, and attach was told steps={told:,}, which the method's schedule is made "
            f"for. Tell attach steps={int(steps)}"
        )
