"""A size instead of a price: users know what they can afford, not λ.

minimise  loss   subject to   cost(network) ≤ budget · cost(dense network)

as a Lagrangian with dual ascent and dual restarts (Gallego-Posada, Ramirez, Erraqabi, Bengio, Lacoste-Julien 2022).
Where we differ: the multiplier follows the cost of the *support* (the network that would be kept if training stopped
now), since that is the size that the user asked for, while gates get their gradient from the *expected* cost; and for
the last part of training the gates are held on a support of exactly the asked size, so that the weights settle on it.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from paring.core import Attachment, validate
from paring.cost import Cost, CostModel, Openness
from paring.gates import Site, StochasticGate, expected, live, openness, replaced, support
from paring.gates.relax import Relaxation
from paring.methods.trained_start import stochastic

EVERY = 10  # optimizer steps between two looks at the support (a look costs about a millisecond)
_CLOSED = -1e4  # log-alpha of a gate that was closed for good
TRIES = 300  # gates tried one by one to fill what is left of the budget
_BELOW = 0.05  # in log-alpha, below the edge: where a gate is closed that may open again


SIZES = {"params": "parameters", "macs": "macs", "latency": "latency", "bytes": "bytes", "memory": "memory"}
"""What can be asked for: argument of `Budget`, and name of the cost."""


@dataclass(frozen=True)
class Budget:
    """Asked size, as fractions of the dense network; at least one of them.

    Args:
        params: parameters left, fraction in (0, 1].
        macs: multiply-accumulates left, fraction in (0, 1].
        latency: time left, fraction in (0, 1], on the device and at the batch size of the call; for `prune` only.
        bytes: bytes of the tensors left, buffers included, fraction in (0, 1]; for `prune` only.
        memory: bytes left at the peak of a forward pass at the batch size of the call, weights and inputs included, fraction in
            (0, 1]; for `prune` only.
        ascent: how far the multiplier rises over the whole training when the cost stays one dense network too high.
        multiple_of: in the end units are opened in blocks of so many, so that widths are multiples of it (or whole layers),
            which is what processors like; give `Shrink` the same number and no dead unit is left.

    Raises:
        ValueError: nothing is asked for, or a fraction is outside (0, 1].
    """

    params: float | None = None
    macs: float | None = None
    latency: float | None = None
    bytes: float | None = None
    memory: float | None = None
    ascent: float = 50.0
    multiple_of: int = 1

    def __post_init__(self) -> None:
        asked = [name for name in SIZES if getattr(self, name) is not None]
        if not asked:
            raise ValueError(
                "Budget() asks for nothing: give params=, macs=, latency=, bytes=, memory= or several, as fractions of the dense "
                "network"
            )
        validate.within(self, "(0, 1]", *asked, what="a fraction of the dense network,")
        validate.positive(self, "ascent")
        validate.as_floats(self, *asked, "ascent")
        validate.as_whole(self, "multiple_of")

    def at(self, done: float) -> Budget:
        """The budget when this share of the way from the dense network is behind: 0 is the dense size, 1 this budget."""
        params, macs = (None if asked is None else 1 - done * (1 - asked) for asked in (self.params, self.macs))
        return replace(self, params=params, macs=macs)

    @property
    def targets(self) -> dict[str, float]:
        """Asked fractions by the name of the cost."""
        pairs = {cost: getattr(self, name) for name, cost in SIZES.items()}
        return {cost: value for cost, value in pairs.items() if value is not None}

    @property
    def measured(self) -> tuple[str, ...]:
        """What is asked that gates cannot count, in the words of the arguments."""
        return tuple(name for name in SIZES if name not in ("params", "macs") and getattr(self, name) is not None)

    def _excess(self, cost: Cost, dense: Cost) -> dict[str, Tensor]:
        return {name: getattr(cost, name) / getattr(dense, name) - asked for name, asked in self.targets.items()}

    def penalty(self, net: nn.Module, model: CostModel, duals: Attachment, key: str) -> Tensor | None:
        """Σ multiplier · (expected cost − asked cost), differentiable in the gates. key: tells budgets in a stack apart."""
        known = duals.state.multipliers.get(key, {})
        active = {name: dual for name in self.targets if (dual := known.get(name)) is not None}
        if not any(float(dual) > 0 for dual in active.values()):
            return None
        excess = self._excess(model(openness(net, model.wiring, expected)), model())
        return torch.stack(
            [active[name].to(value.device) * value for name, value in excess.items() if name in active]
        ).sum()

    @torch.no_grad()
    def ascend(
        self,
        net: nn.Module,
        model: CostModel,
        duals: Attachment,
        key: str,
        step: int,
        steps: int | None,
        gain: float = 1.0,
    ) -> None:
        """Move the multipliers: up while the support is too large, back to zero as soon as it fits (a dual restart)."""
        if step % EVERY:
            return
        rate = gain * EVERY * self.ascent / (steps or 20_000)
        found = live(openness(net, model.wiring, support), model.wiring)
        known = duals.state.multipliers.setdefault(key, {})
        for name, excess in self._excess(model(found), model()).items():
            old = known.get(name, torch.zeros(()))
            new = old + rate * float(excess) if float(excess) > 0 else torch.zeros(())
            known[name] = new

    def _block(self, site: Site) -> int:
        return self.multiple_of if site.kind == "units" else 1

    @property
    def _least(self) -> str:
        return "one open gate" if self.multiple_of == 1 else f"one block of {self.multiple_of} open gates"

    @torch.no_grad()
    def shares(self, net: nn.Module, model: CostModel) -> dict[str, float]:
        """Share of the dense cost that the present support takes, by the names of `targets`."""
        cost, dense = model(live(openness(net, model.wiring, support), model.wiring)), model()
        return {name: float(getattr(cost, name) / getattr(dense, name)) for name in self.targets}

    def _used(
        self, given: Openness, dense: Cost, sites: Sequence[Site], model: CostModel, parts: Sequence[Tensor]
    ) -> float:
        """Largest share of any budget that this support of `sites` uses, beside what is given; at most 1 fits."""
        found = replaced(given, model.wiring, sites, [part.double() for part in parts])
        excess = self._excess(model(live(found, model.wiring)), dense)
        return max((float(value) + self.targets[name]) / self.targets[name] for name, value in excess.items())

    def _fewest(self, sites: Sequence[Site]) -> list[Tensor]:
        """One open gate (or block of them) in every place, but none of those of a branch, which may go whole."""
        parts = [torch.zeros(site.shape) for site in sites]
        for site, part in zip(sites, parts, strict=True):
            part.view(-1)[: self._block(site) * (site.kind != "blocks")] = 1
        return parts

    @torch.no_grad()
    def least(self, net: nn.Module, sites: Sequence[Site], model: CostModel) -> dict[str, float]:
        """The smallest share of the dense cost that these gates could leave, by the names of `targets`."""
        found = replaced(openness(net, model.wiring, support), model.wiring, sites, self._fewest(sites))
        cost, dense = model(live(found, model.wiring)), model()
        return {name: float(getattr(cost, name) / getattr(dense, name)) for name in self.targets}

    @torch.no_grad()
    def check(self, net: nn.Module, sites: Sequence[Site], model: CostModel) -> None:
        """Refuse at once a budget that even one open gate (or block of them) in every place exceeds.

        Raises:
            ValueError: with the smallest budget that could be met.
        """
        used = self._used(openness(net, model.wiring, support), model(), sites, model, self._fewest(sites))
        if used > 1:
            least = ", ".join(f"{name} {asked * used:.3g}" for name, asked in self.targets.items())
            raise ValueError(
                f"{self} cannot be met: {self._least} in each of the {len(sites)} gated places, and all that is not "
                f"gated, already cost {used:.2f} times the budget. Ask for more (about {least}), or gate more places"
            )

    @torch.no_grad()
    def project(
        self,
        net: nn.Module,
        sites: Sequence[Site],
        model: CostModel,
        keys: Sequence[Tensor] | None = None,
        *,
        tries: int = TRIES,
        for_good: bool = True,
    ) -> None:
        """Open the likeliest gates, in order, until the budget is spent; close all others for good.

        Every gated place keeps at least one gate open, but a residual branch. What is left of the budget after the longest prefix that fits
        is filled with the next gates in order that still fit. With `multiple_of`, the likeliest units of a place are a
        block, those after them the next one, and so on; a block is as likely as its mean log-alpha says.

        Args:
            net: a gated network.
            sites: the gates.
            model: of the network.
            keys: what the gates of each site are ordered by instead of their log-alphas, higher ones first.
            tries: gates (blocks) that are tried, one by one, to fill what the longest prefix leaves.
            for_good: close them for good; else what closes now is left just where a gate closes.

        Raises:
            ValueError: even one open gate (or block of them) in every place is over budget.
        """
        gates = list(stochastic(net, sites))
        flat = torch.cat([key.flatten() for key in keys or [gate.log_alpha.detach().float().cpu() for gate in gates]])
        gone = torch.cat([gate.permanently_closed().flatten().cpu() for gate in gates])
        flat[gone] = -torch.inf
        sizes = [gate.shape.numel() for gate in gates]
        widths = [self._block(site) for site in sites]
        order, ends, base = _blocks(flat, sizes, widths, [site.kind != "blocks" for site in sites])
        given, dense = openness(net, model.wiring, support), model()

        def spent(mask: Tensor) -> float:
            parts = [gate.whole(part.view(gate.shape)) for part, gate in zip(mask.split(sizes), gates, strict=True)]
            return self._used(given, dense, sites, model, parts)

        def is_round(mask: Tensor) -> bool:
            parts = zip(mask.split(sizes), gone.split(sizes), widths, strict=True)
            return all(int(part.sum()) % width == 0 or bool((part | lost).all()) for part, lost, width in parts)

        def prefix(count: int) -> Tensor:
            mask = base.clone()
            mask[order[: ends[count]]] = True
            return mask & ~gone

        if spent(base) > 1:
            raise ValueError(
                f"{self} cannot be met: {self._least} in each of the {len(sites)} gated places already costs {spent(base):.2f} times the budget"
            )
        count = bisect_right(range(len(ends)), 1.0, key=lambda n: spent(prefix(n))) - 1
        mask = prefix(count)
        for start, end in itertools.pairwise(ends[count : count + tries + 1]):
            block = order[start:end]
            wider = mask.clone()
            wider[block] = True
            wider &= ~gone
            if not bool(mask[block].all()) and (self.multiple_of == 1 or is_round(wider)) and spent(wider) <= 1:
                mask = wider
        for part, gate in zip(mask.split(sizes), gates, strict=True):
            _force(gate, part.view(gate.shape), for_good)


def _blocks(
    flat: Tensor, sizes: Sequence[int], widths: Sequence[int], stay: Sequence[bool]
) -> tuple[Tensor, list[int], Tensor]:
    """Entries of all places in the order in which they are opened, where the blocks end in it, and the first blocks.

    Args:
        flat: log-alphas, place after place.
        sizes: entries of each place.
        widths: entries in a block of each place.
        stay: whether the first block of each place stays open in any case.
    """
    entries, ranks, lengths = [], [], []
    first, start = torch.zeros(len(flat), dtype=torch.bool), 0
    for part, width, stays in zip(flat.split(list(sizes)), widths, stay, strict=True):
        place = part.argsort(descending=True, stable=True)
        block, value = torch.arange(len(part)) // width, part[place]
        length, there = block.bincount(), value.isfinite()
        empty = flat.new_zeros(len(length))
        total = empty.index_add(0, block, value.masked_fill(~there, 0.0))
        ranks.append(total / empty.index_add(0, block, there.to(flat.dtype)))  # nan where all are gone
        entries.append(place + start)
        lengths.append(length)
        first[entries[-1][: width * stays]] = True
        start += len(part)
    inner, size = torch.cat(entries), torch.cat(lengths)
    begin, turn = size.cumsum(0) - size, torch.cat(ranks).nan_to_num(-torch.inf).argsort(descending=True, stable=True)
    ends = size[turn].cumsum(0)
    order = torch.repeat_interleave(begin[turn] - (ends - size[turn]), size[turn]) + torch.arange(len(flat))
    return inner[order], [0, *ends.tolist()], first


def _force(gate: StochasticGate, is_open: Tensor, for_good: bool) -> None:
    """Make the gate's support equal to `is_open`."""
    wanted, support = is_open.to(gate.log_alpha.device), gate.support()
    gate.log_alpha[wanted & ~support] = gate.relaxation.logits(0.75)
    if for_good:
        gate.log_alpha[~wanted] = _CLOSED
    else:
        gate.log_alpha[~wanted & support] = edge(gate.relaxation) - _BELOW


@lru_cache
def edge(relaxation: Relaxation) -> float:
    """The largest log-alpha at which the relaxation's test-time value is zero."""
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        closed = float(relaxation.estimate(torch.tensor(middle, dtype=torch.float64))) == 0
        low, high = (middle, high) if closed else (low, middle)
    return low
