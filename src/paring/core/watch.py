"""How long work tells how far it is: every `watch=` is called with one `Progress`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Progress:
    """How far a long piece of work is.

    Attributes:
        done: how much is done: bytes, optimizer steps, candidates.
        total: how much there is to do; None when nobody knows.
        what: what was just done: the name of a tensor, a candidate's settings.
        step: the candidate, where candidates are what is counted.
        net: the decoded network of the candidate, where there is one.
    """

    done: int
    total: int | None = None
    what: str = ""
    step: Any = None
    net: nn.Module | None = None


Watch = Callable[[Progress], None]
