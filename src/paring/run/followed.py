"""Whether a training loop did what its method needs; what it left undone is said when the network is finished."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from paring.core import Clock, Method, Stack

_LOOK = "For a look in between, or where no training was meant: run.finish(early=True)"


@dataclass
class Loop:
    """What a loop has called so far.

    Attributes:
        begun: the clock at its beginning; loading a state moves the run's clock on.
        stepped: whether `run.after_step` was called.
        read: whether `run.penalty` was called, or is charged without.
        follows: whether the steps are an optimizer's own.
    """

    begun: Clock
    stepped: bool = False
    read: bool = False
    follows: bool = False

    def undone(self, net: nn.Module, method: Method, clock: Clock) -> list[str]:
        """What is undone when training ends at this time, a sentence or two each."""
        name, found = _name(method), []
        if method.needs_training and clock == self.begun and not self.stepped:
            if self.follows:
                return [
                    f"the optimizer that the run follows never made a step ({_where(clock)}), so {name} did not follow the training. "
                    f"Train with that one, or call run.follow(optimizer) with the one that moves the weights. {_LOOK}"
                ]
            return [
                f"run.step was never called ({_where(clock)}), so {name} did not follow the training. Call run.step(opt) in "
                f"place of opt.step(), or run.before_step(opt) and run.after_step(opt) around it. {_LOOK}"
            ]
        if method.has_penalty and self.stepped and not self.read:
            found.append(
                f"run.penalty() was never read, so the loss did not hold what {name} charges: "
                "(loss + run.penalty()).backward()"
            )
        if not method.needs_training:
            return found
        lacks = method.unfinished(net, clock)
        if clock.steps is not None and clock.step < clock.steps:
            found.append(
                f"training ended at {_where(clock)}{f': {lacks}' if lacks else ''}. Train {name} to the end, or tell attach "
                f"the true length with steps=.... {_LOOK}"
            )
        elif lacks:
            found.append(f"training ended at {_where(clock)}: {lacks}. {_LOOK}")
        if clock.round + 1 < method.rounds:
            found.append(
                f"{name} has {method.rounds} rounds, and training ended in round {clock.round}, counted from 0. When a "
                f"round is over call run.next_round(opt) and train on, until it returns False. {_LOOK}"
            )
        return found


def _where(clock: Clock) -> str:
    return f"step {clock.step:,}" + ("" if clock.steps is None else f" of {clock.steps:,}")


def _name(method: Method) -> str:
    if isinstance(method, Stack):
        return " and ".join(_name(one) for one in method.methods)
    return type(method).__name__
