"""Shrinking while training goes on: look at what has settled, cut it out if that pays, and take everything along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from paring.core import Method, Removal, gates, is_sharded
from paring.run.decide import Decision, closed_counts, decide
from paring.run.distributed.parallel import Parallel, from_first
from paring.run.probe import NetworkProbe
from paring.run.surgery.carry import Cuts, check_network
from paring.run.surgery.fold_gates import fold_gates
from paring.run.surgery.live_cut import cut_all
from paring.run.surgery.optimizer_memory import check_memory
from paring.run.surgery.reset import reset

T = TypeVar("T")
_TRIES = 3


class Shrinking:
    """What a run cuts out of its network, and what goes along.

    Attributes:
        records: what was cut, and what was looked at and did not pay, one record each (see `decide`).
        companions: what has to shrink along with the network.
        wrappers: what is made anew after every cut.
    """

    def __init__(self, net: nn.Module, method: Method, probe: NetworkProbe, batch: int | None) -> None:
        self.net, self.method, self.probe, self.batch = net, method, probe, batch
        self.records: list[dict[str, Any]] = []
        self.companions: list[object] = []
        self.wrappers: list[Parallel] = []
        self._spare: tuple[str, ...] = ()
        self._seen: tuple[int, ...] = ()
        self._slow = 0

    def look(self, opt: torch.optim.Optimizer, removal: Removal, step: int) -> None:
        """Look at what could go, and cut it out if that pays."""
        for one in (opt, *self.companions):
            if isinstance(one, torch.optim.Optimizer):
                check_memory(one, self.net.parameters())
        check_network(self.net)
        if removal.fold and fold_gates(self.net, self.probe.example, [opt, *self.companions]):
            self._renew()
        found = from_first(lambda: self._decide(removal, step))
        if found is None:
            return
        self._spare = found.spare
        if found.cuts is not None:
            self.cut(found.cuts, [opt, *self.companions])
        if found.record:
            self.records.append(found.record)
        slow = found.cuts is None and bool(found.record.get("milliseconds"))
        self._slow = self._slow + 1 if slow else 0
        if self._slow in (0, _TRIES):  # one bad measurement on a busy machine is not the last word
            self._seen, self._slow = closed_counts(self.net), 0

    def _decide(self, removal: Removal, step: int) -> Decision | None:
        """Look again once something new has settled (it never unsettles), or when a cut was not faster once or twice."""
        if closed_counts(self.net) == self._seen:
            return None
        return decide(self.net, self.probe.example, removal, step=step, batch=self.batch, spare=self._spare)

    def cut(self, cuts: Cuts, companions: list[object]) -> None:
        """Cut the network and these companions."""
        _ = self.probe.costs  # costs stay those of the original network
        cut_all(self.net, cuts, companions)
        self.method.on_shrink(self.net, cuts)
        self._renew()

    def reset(self, opt: torch.optim.Optimizer) -> None:
        """The weights are other ones: open gates that are held show one, optimizers forget, averages start again."""
        if not is_sharded(self.net):
            check_network(self.net)
        for _, _, gate in gates(self.net):
            gate.note_folded()
        for other in (opt, *self.companions):
            reset(self.net, other)
        self._renew()

    def _renew(self) -> None:
        for wrapper in self.wrappers:
            wrapper.renew()

    def latest(self, make: Callable[[], T]) -> Callable[[], T]:
        """What `make` makes of the network, made at once and anew after every cut."""
        made: list[tuple[int, T]] = []

        def present() -> T:
            cuts = sum(bool(record["done"]) for record in self.records)
            if not made or made[0][0] != cuts:
                made[:] = [(cuts, make())]
            return made[0][1]

        present()
        return present

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"wrappers": []}
