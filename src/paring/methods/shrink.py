"""Shrink while training: what has closed for good stops costing time at once, not only after training.

Put behind the method that closes gates: `Stack(L0(...), Shrink())`. Now and then what is permanently closed is cut out of the
network, of the optimizer's state and of everything else that has its shapes; the rest trains on as if nothing had
happened (the same numbers up to rounding). A cut is made only when it pays.

One thing stops being the same: what L0's `l2` without `detach_l2` charges the gates of the next layer for weights that
read a unit that is gone.

The gates of L0 are closed for good once they are held (`hold=`, a `Budget`). Before that, a gate can open again; to let such gates go
as well is an approximation (*retirement*), off by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from paring.core import Clock, Method, Probe, Removal, attached, gates, in_steps, validate
from paring.gates import StochasticGate
from paring.run.surgery.carry import check_network
from paring.run.surgery.fold_gates import check_foldable
from paring.run.surgery.optimizer_memory import check_memory, check_optimizer

_LOOK = 10  # optimizer steps between two looks at which gates could retire


@dataclass(frozen=True)
class Shrink(Method):
    """Cut permanently closed units out of the network while it trains.

    Args:
        every: how often to look, as epochs ("1ep", "0.5ep") or optimizer steps (200).
        multiple_of: widths are rounded up to a multiple of this (with dead units), unless they are at most half of it.
        saving: smallest predicted saving worth a cut, as a fraction of the present parameters or MACs, in [0, 1).
        measure: time forward and backward on copies, and cut only when that gets faster. Timing differs from run to run,
            and with it, within rounding, the result; False makes runs repeatable bit for bit.
        retire: a gate that is closed at test time and whose P(open) stays below this is closed for good, although it
            would still open now and then; 0 switches that off.
        patience: for how long it has to stay below, like `every`.
        fold: multiply held gates into the weights at each look, so that open units pay nothing for having had a gate. The
            function stays as it is; training takes another path from there on, as it moves θ z and not θ.

    Raises:
        ValueError: a number out of its range.
    """

    goal: ClassVar[str | None] = None

    every: str | int = "1ep"
    multiple_of: int = 8
    saving: float = 0.1
    measure: bool = True
    retire: float = 0.0
    patience: str | int = "1ep"
    fold: bool = False

    def __post_init__(self) -> None:
        validate.as_whole(self, "multiple_of")
        validate.within(self, "[0, 1)", "saving", "retire")
        validate.as_floats(self, "saving", "retire")
        for name in ("every", "patience"):
            in_steps(f"Shrink({name}=...)", getattr(self, name), 1)

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = [gate for _, _, gate in gates(net)]
        if not found:
            raise ValueError(
                f"no place for gates of Shrink: there are none in this {type(net).__name__} yet. Put it behind the "
                "method that closes gates: Stack(L0(...), Shrink(...))"
            )
        if self.retire == 0:
            return
        for gate in found:
            if isinstance(gate, StochasticGate):
                clamp = gate.relaxation.clamp
                least = 0.0 if clamp is None else float(gate.relaxation.prob_open(torch.tensor(clamp[0])))
                if least >= self.retire:
                    raise ValueError(
                        f"Shrink(retire={self.retire}): with {gate.relaxation} P(open) never falls below {least:.3f}. "
                        "Give a larger number, or a relaxation with clamp=None"
                    )
                gate.may_retire()

    def on_start(self, net: nn.Module, clock: Clock) -> None:
        every = self._every(clock)
        if clock.steps is not None and every > clock.steps:
            attached(net).say(
                f"Shrink(every={self.every!r}) looks every {every:,} steps, but training has {clock.steps:,}: nothing is cut while "
                "it lasts. Give a smaller every=..., or train longer"
            )
        patience = self._patience(clock) if self.retire > 0 else 0
        if clock.steps is not None and patience > clock.steps:
            attached(net).say(
                f"Shrink(patience={self.patience!r}) retires no gate: that is {patience:,} steps, but training has {clock.steps:,}. "
                "Give a smaller patience=..., or train longer"
            )

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        check_optimizer(opt)
        if clock.step == 1:
            check_network(net)
            check_memory(opt, net.parameters())
            if self.fold:
                check_foldable(opt)
        if self.retire > 0:
            patience = self._patience(clock)
            look = min(_LOOK, patience)
            if clock.step % look == 0:
                for _, _, gate in gates(net):
                    if isinstance(gate, StochasticGate):
                        gate.retire(self.retire, look, patience)

    @property
    def reads_weights(self) -> bool:
        return False

    def removal(self, net: nn.Module, clock: Clock) -> Removal | None:
        if clock.step % self._every(clock):
            return None
        return Removal(self.multiple_of, self.saving, self.measure, self.fold)

    def _every(self, clock: Clock) -> int:
        return in_steps("Shrink(every=...)", self.every, clock.epoch_steps)

    def _patience(self, clock: Clock) -> int:
        return in_steps("Shrink(patience=...)", self.patience, clock.epoch_steps)
