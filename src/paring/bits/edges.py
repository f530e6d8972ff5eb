"""Where a chain of monotone modules crosses the steps of a hard-threshold unit, exactly, in float32.

A chain such as BatchNorm, Hardtanh, Sign is monotone in every channel, because rounding is. So each of its steps is one
comparison with an edge: a whole number where the input is a sum of ±1, a float32 where it is any number. Edges are found
by bisection over all such inputs with the modules themselves, so that comparisons agree with the modules at every
input, rounding included; falling channels (a negative scale) are mirrored, constant ones have an edge beyond the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paring.hard.learned_step import LearnedStep
from paring.hard.units import Sign, Staircase

LARGEST_KEY = 0x7F7FFFFF  # the bits of the largest float32


@dataclass(frozen=True)
class Code:
    """A hard-threshold unit's values as planes of bits; bit q is set from level q + 1 on.

    Attributes:
        values: of the levels, ascending: -1 and 1, or multiples of a size from 0 on (as float32 has them).
        size: of one step.
    """

    values: tuple[float, ...] = (-1.0, 1.0)
    size: float = 1.0

    @property
    def planes(self) -> int:
        """Bits of one activation."""
        return len(self.values) - 1

    @property
    def signed(self) -> bool:
        """Whether the values are -1 and 1."""
        return self.values[0] < 0

    def level(self, values: Tensor) -> Tensor:
        """Number of bits set, int64."""
        return (values > 0).long() if self.signed else (values.double() / self.size).round().long()


def code_of(unit: nn.Module) -> Code | None:
    """The code of a unit; None for modules that are none."""
    if type(unit) is Sign:
        return Code()
    if type(unit) is Staircase:
        return _steps(unit, (torch.arange(-1, unit.steps) + 0.5) / max(1, unit.steps - 1), 1 / unit.steps)
    if type(unit) is LearnedStep:
        size = float(unit.step.detach().abs().clamp(min=1e-8))
        return _steps(unit, torch.arange(unit.steps + 1) * size, size)
    return None


def _steps(unit: nn.Module, points: Tensor, size: float) -> Code:
    """A unit that rises by `size` between the points."""
    with torch.no_grad():
        return Code(tuple(unit(points[:, None]).flatten().tolist()), size)


@dataclass(frozen=True)
class Chain:
    """Monotone modules that end in a hard-threshold unit.

    Attributes:
        modules: in order, the unit last; they take (1, C) or (1, C, 1, 1).
        channels: C.
        flat: whether they take (1, C).
    """

    modules: Sequence[nn.Module]
    channels: int
    flat: bool

    @property
    def code(self) -> Code:
        code = code_of(self.modules[-1])
        assert code is not None
        return code

    @torch.no_grad()
    def levels(self, values: Tensor) -> Tensor:
        """Levels of one float32 value per channel, (C,) -> (C,) int64."""
        x = values.view(1, -1) if self.flat else values.view(1, -1, 1, 1)
        for module in self.modules:
            x = module(x)
        return self.code.level(x.reshape(-1))

    def falling(self) -> Tensor:
        """(C,) bool: the level falls where the input rises."""
        ends = floats(torch.full((self.channels,), LARGEST_KEY))
        return self.levels(-ends) > self.levels(ends)


@dataclass(frozen=True)
class Edges:
    """Bit q of channel c is set where the input's key, negated if falling, is at least `edges[q, c]`.

    Attributes:
        edges: (planes, C) int64.
        falling: (C,) bool.
    """

    edges: Tensor
    falling: Tensor


def find(chain: Chain, value: Callable[[Tensor], Tensor], limit: int) -> Edges:
    """Edges of a chain over the keys -limit .. limit.

    Args:
        chain: the modules.
        value: (C,) int64 keys -> (C,) float32 inputs of the chain, rising.
        limit: largest key; an edge of limit + 1 is never reached.
    """
    ends = torch.full((chain.channels,), limit)
    falling = chain.levels(value(-ends)) > chain.levels(value(ends))
    side = torch.where(falling, -1, 1)
    found = []
    for plane in range(chain.code.planes):
        low, high = -ends, ends + 1
        while bool((low < high).any()):
            middle = torch.div(low + high, 2, rounding_mode="floor")
            reached = chain.levels(value(side * middle.clamp(max=limit))) > plane
            reached |= middle > limit
            low, high = torch.where(reached, low, middle + 1), torch.where(reached, middle, high)
            low = torch.minimum(low, high)
        found.append(low)
    return Edges(torch.stack(found), falling)


def floats(keys: Tensor) -> Tensor:
    """Float32 numbers in order: key 0 is 0, key k is the k-th above, -k the k-th below."""
    return keys.abs().to(torch.int32).view(torch.float32) * keys.sign().float()


def intervals(chain: Chain) -> tuple[Tensor, Tensor]:
    """low, high (planes, C) float32: bit q of channel c is set where low <= input <= high, for every float32 input.

    A NaN sets no bit.
    """
    found = find(chain, floats, LARGEST_KEY)
    never = found.edges > LARGEST_KEY
    edge = floats(torch.where(never, torch.zeros_like(found.edges), found.edges))
    always = found.edges <= -LARGEST_KEY
    edge = torch.where(never, torch.inf, torch.where(always, -torch.inf, edge))
    low = torch.where(found.falling, torch.where(never, torch.inf, -torch.inf), edge)
    high = torch.where(found.falling, torch.where(never, -torch.inf, -edge), torch.where(never, -torch.inf, torch.inf))
    return low, high
