"""L0 regularisation with stochastic gates (Louizos, Welling, Kingma, ICLR 2018, arXiv 1712.01312).

    minimise over θ and log α   E_z[ loss(θ ⊙ z) ] + λ Σ_g |g| P(z_g ≠ 0) + (l2/2) Σ_g P(z_g ≠ 0) ‖θ_g‖²

(eq. 12, 16, 17).

Any relaxation with a distribution function serves (section 2.1): hard concrete by default. Test time uses the
relaxation's estimate, so what is closed is exactly zero and can be removed.

Differences from the authors' code, on purpose: biases are gated with their unit; unit gates sit behind a BatchNorm and
not in front of it; the gates have their own learning rate (`gate_lr` times the weights'); costs count true output
positions and pruned inputs; `l2` is not divided by N. `Price` is the paper's λ, `Budget` asks for a size instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from paring.core import (
    At,
    Clock,
    Method,
    Places,
    Probe,
    attached,
    gates,
    in_steps,
    settle_places,
    validate,
)
from paring.core.norm_statistics import renew_statistics, restore_momenta
from paring.cost import CostModel
from paring.gates import Site, StochasticGate, gate_of, put_gate, say_left_out, sites
from paring.gates.relax import HardConcrete, Relaxation
from paring.methods.budget import Budget
from paring.methods.by_layer import ByLayer, as_by_layer, named, pairs_of, value_at
from paring.methods.expected_l2 import expected_l2_of
from paring.methods.hold import Hold
from paring.methods.meet import close_silent, meet
from paring.methods.price import Price
from paring.methods.scheduled import GAIN, UNTOLD, move, scratch_course
from paring.methods.trained_start import (
    MEMORY,
    draw_by_rank,
    importance_per_cost,
    is_trained,
    silent,
    stochastic,
    watched,
)


@dataclass(frozen=True)
class _Notes:
    """What L0 knows about one network: where its gates are and what they cost."""

    sites: tuple[Site, ...]
    model: CostModel


@dataclass(frozen=True)
class L0(Method):
    """L0 regularisation with stochastic gates.

    Args:
        price: what staying open costs: a number (λ per parameter), a `Price`, or a `Budget` for an asked size.
        at: places of the gates, e.g. "units", "weights", ["units:Conv2d", "inputs:Linear"]; see `paring.core.places`.
        keep: initial probability in (0, 1) that a gate is kept (the paper uses 0.8 for network inputs, 0.7 for wide ResNets),
            or pairs (layer pattern, probability). None is 0.5 from scratch; gates of a trained network begin at one.
        gate: the relaxation.
        gate_lr: learning rate of the gates as a multiple of the weights'. None: ten times with a price; with a budget the gates
            move by themselves, at a rate that follows from the length of training.
        l2: rate of the L2 term that counts a weight only while its gate is open (eq. 15); 0 switches it off.
        detach_l2: keep the L2 term from shrinking gates.
        per_example: one sample per example instead of one per minibatch.
        hold: the end of training, in which gates stand still: its fraction, or a `Hold` with a rewind of the weights or with
            units that drop out; None is `Hold()`.
        prior: keep probability of a prior on the gates, for the term of eq. 21 that the paper drops; None drops it too.
        kl: rate of KL(q(z) ‖ prior), used with `prior` (1/N for the variational bound of the spike-and-slab view).
        start: "trained": the gates change nothing at first, and which of them close first follows from what the loss would
            lose without them (`paring.methods.trained_start`). "scratch": they draw noise from the first step on, from
            `keep`. None is "trained" where neither `keep` nor `gate_lr` is given and the network shows that it was trained:
            its BatchNorms have seen data, or the scales of its other norms differ. A network without norms shows nothing.

    Raises:
        ValueError: a number out of its range, or a place that cannot be read.
    """

    goal: ClassVar[str | None] = "small"

    price: float | Price | Budget = Price(0.0)  # noqa: RUF009  # a frozen value
    at: At = Places(("units",))  # noqa: RUF009  # a frozen value
    keep: ByLayer | None = None
    gate: Relaxation = HardConcrete()  # noqa: RUF009  # a frozen value
    gate_lr: float | None = None
    l2: float = 0.0
    detach_l2: bool = False
    per_example: bool = False
    hold: float | Hold | None = Hold()  # noqa: RUF009  # a frozen value
    prior: float | None = None
    kl: float = 0.0
    start: Literal["trained", "scratch"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.price, int | float):
            object.__setattr__(self, "price", Price(float(self.price)))
        if not isinstance(self.price, Price | Budget):
            raise ValueError(f"L0(price={self.price!r}): give a number, a Price or a Budget")
        if isinstance(self.price, Budget) and (odd := self.price.measured):
            told = ", ".join(f"{name}=" for name in odd)
            raise ValueError(
                f"L0 counts parameters and MACs: give it Budget(macs=...) or params=; pr.prune takes {told}, too"
            )
        settle_places(self, "units", "inputs", "weights", "heads", "blocks")
        object.__setattr__(self, "hold", Hold.of(self.hold))
        if self.keep is not None:
            as_by_layer(self, "keep", "(0, 1)")
        numbers = ("l2", "kl") if self.gate_lr is None else ("gate_lr", "l2", "kl")
        validate.not_negative(self, *numbers)
        validate.as_floats(self, *numbers)
        if self.start is not None:
            validate.one_of(self, "start", ("trained", "scratch"))
        if self.start == "trained" and self.keep is not None:
            raise ValueError(
                f"L0(keep={self.keep!r}, start='trained'): gates of a trained network begin at one. Leave keep out, or begin "
                "with noise: start='scratch'"
            )
        if self.start == "trained" and self.gate_lr is not None and isinstance(self.price, Budget):
            raise ValueError(
                f"L0(gate_lr={self.gate_lr:g}, start='trained') with a budget: there gates follow a schedule and no learning "
                "rate. Leave gate_lr out, or begin with noise: start='scratch'"
            )
        if self.prior is not None:
            validate.within(self, "(0, 1)", "prior", what="a probability,")
        if self.end.drops and not (self.holding and all(p != "weights" for p in self._kinds)):
            raise ValueError(
                "Hold(drop=...) is for units or inputs (not single weights) whose gates are held: give Hold(last=...), the "
                "last fraction of training, or a Budget"
            )
        if self.end.rewind is not None and not self.holding:
            raise ValueError(
                "Hold(rewind=...) needs last=, the last fraction of training, for which weights are rewound"
            )
        if self.kl > 0 and self.prior is None:
            raise ValueError("L0(kl=...) needs prior=, the keep probability of the prior on the gates")

    @property
    def places(self) -> tuple[str, ...]:
        """The places as a tuple."""
        return Places.of(self.at).written

    @property
    def end(self) -> Hold:
        """`hold` as the value it stands for."""
        return Hold.of(self.hold)

    @property
    def holding(self) -> float:
        """Last fraction of training in which gates are held, unless the network shows that it was trained."""
        return self._held_for(self.start == "trained")

    def _held_for(self, trained: bool) -> float:
        if self.end.last is not None:
            return self.end.last
        return 0.0 if not isinstance(self.price, Budget) else 0.75 if trained else 0.25

    @property
    def _kinds(self) -> tuple[str, ...]:
        return Places.of(self.at).kinds

    def keep_at(self, site: Site) -> float:
        """Initial keep probability for this site."""
        return 0.5 if self.keep is None else value_at(self.keep, site.layers, 0.5)

    def sites(self, net: nn.Module) -> tuple[Site, ...]:
        """Where this method's gates are in an attached network."""
        return self._notes(net).sites

    def _notes(self, net: nn.Module) -> _Notes:
        notes = attached(net).notes[self]
        assert isinstance(notes, _Notes)
        return notes

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = sites(net, probe.wiring, self.at)
        say_left_out(net, probe, self.at, found)
        for what, given in (("keep", self.keep or 0.5), ("drop", self.end.drop)):
            _all_used(what, [name for name, _ in named(given) if name], found)
        _all_used("Price.layers", [name for name, _ in getattr(self.price, "layers", ())], found)
        gated = sum(p.numel() for _, _, gate in gates(net) for p in gate.parameters())
        dense = CostModel.of(net, probe.wiring)
        model = CostModel(probe.wiring, extra=dense.extra - gated)
        if isinstance(self.price, Budget):
            self.price.check(net, found, model)
        modules, trained = dict(net.named_modules()), self._begins_silent(net)
        for site in found:
            weight = next(modules[site.module].parameters())
            gate = StochasticGate(
                self.gate,
                site.shape,
                keep=self.keep_at(site),
                per_example=self.per_example,
                shared=bool(site.mounts),
                lr_scale=10.0 if self.gate_lr is None else self.gate_lr,
                drop=value_at(self.end.drop, site.layers, 0.0),
                device=weight.device,
                dtype=weight.dtype,
            )
            if trained or self._own_rate:
                gate.keep_slopes()
            if trained:
                gate.log_alpha.data.fill_(self.gate.logits(0.95))
                gate.silence()
            put_gate(modules, site, gate)
        attached(net).notes[self] = _Notes(found, model)
        if not self._moves_gates:
            attached(net).say(
                "L0(price=0) asks for nothing to go: its gates add noise to training, and none of them is ever charged for "
                "being open. Give a price, such as price=0.1/N for N training examples, or price=paring.Budget(params=0.25)"
            )

    @property
    def _own_rate(self) -> bool:
        """Whether gates that draw move by themselves, at a rate that follows from the length of training."""
        return self.gate_lr is None and isinstance(self.price, Budget)

    def _begins_silent(self, net: nn.Module) -> bool:
        untold = self.start is None and self.keep is None and self.gate_lr is None
        return self.start == "trained" or (untold and is_trained(net))

    @property
    def targets(self) -> Mapping[str, float]:
        return self.price.targets if isinstance(self.price, Budget) else {}

    def least(self, net: nn.Module) -> Mapping[str, float]:
        notes = self._notes(net)
        return self.price.least(net, notes.sites, notes.model) if isinstance(self.price, Budget) else {}

    def point(self, clock: Clock) -> int | None:
        return (
            None
            if self.end.rewind is None
            else in_steps("Hold(rewind=...)", self.end.rewind, clock.epoch_steps, least=0)
        )

    def on_start(self, net: nn.Module, clock: Clock) -> None:
        held = self._held_for(silent(net, self.sites(net)))
        if clock.steps is None and held:
            then = ", and the budget is met in one blow by finish" if isinstance(self.price, Budget) else ""
            attached(net).say(
                f"L0 holds its gates for the last {held:.0%} of training, whose length it was not told: they are "
                f"never held{then}. Tell attach with steps=..."
            )
        back = self.point(clock)
        if back is not None and clock.steps is None:
            raise ValueError("Hold(rewind=...) has to know how long training is: attach(..., steps=...)")
        if back is not None and clock.steps is not None and back >= (last := self._last(net, clock.steps)):
            raise ValueError(
                f"Hold(rewind={self.end.rewind!r}) is step {back}, but the gates are held from step {last} on"
            )

    def goes_back(self, net: nn.Module, clock: Clock) -> bool:
        if self.end.rewind is None:
            return False
        mine = [gate for site in self.sites(net) if isinstance(gate := gate_of(net, site), StochasticGate)]
        return all(gate.frozen and not gate.folded for gate in mine)

    def _last(self, net: nn.Module, steps: int) -> int:
        """Step at which the gates are held, which were not held yet."""
        return round((1 - self._held_for(silent(net, self.sites(net)))) * steps)

    def penalty(self, net: nn.Module, clock: Clock) -> Tensor | None:
        notes, parts = self._notes(net), []
        if not _held(net, notes.sites) and not silent(net, notes.sites):
            if isinstance(self.price, Budget):
                parts.append(self.price.penalty(net, notes.model, attached(net), "+".join(self.places)))
            elif isinstance(self.price, Price):
                parts.append(self.price.penalty(net, notes.sites))
            if self.prior is not None and self.kl > 0:
                parts.append(self.kl * self._divergence(net, notes.sites, self.prior))
        if self.l2 > 0:
            parts.append(self.l2 * expected_l2_of(net, notes.model.wiring, detach=self.detach_l2))
        present = [part for part in parts if part is not None]
        return torch.stack(present).sum() if present else None

    @property
    def has_penalty(self) -> bool:
        return self.l2 > 0 or self._moves_gates

    @property
    def _moves_gates(self) -> bool:
        """Whether some term of the loss, besides the data's, closes gates."""
        priced = not isinstance(self.price, Price) or any(
            (self.price.rate, *(rate for _, rate in pairs_of(self.price.layers)))
        )
        return priced or (self.l2 > 0 and not self.detach_l2) or (self.prior is not None and self.kl > 0)

    def unfinished(self, net: nn.Module, clock: Clock) -> str | None:
        held = _held(net, self.sites(net))
        if held or clock.steps is None or not self._held_for(silent(net, self.sites(net))):
            return None
        return f"the gates were not yet held, which begins at step {self._last(net, clock.steps):,}"

    def _divergence(self, net: nn.Module, found: tuple[Site, ...], prior: float) -> Tensor:
        logit = self.gate.logits(prior)
        logits = [gate.log_alpha for site in found if isinstance(gate := gate_of(net, site), StochasticGate)]
        return torch.stack([self.gate.kl(value, logit).sum() for value in logits]).sum()

    @property
    def reads_weights(self) -> bool:
        return self.l2 > 0

    def on_grads(self, net: nn.Module, clock: Clock) -> None:
        for gate in stochastic(net, self.sites(net)):
            if self._own_rate or gate.silent:
                gate.feel()
            gate.rest()

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        notes = self._notes(net)
        for gate in stochastic(net, notes.sites):
            gate.renew()
            gate.follow(max(1 / MEMORY, 1 / max(1, clock.step)))
        if _held(net, notes.sites):
            return
        last = None if clock.steps is None else self._last(net, clock.steps)
        if silent(net, notes.sites):
            self._close_silent(net, notes, clock, last)
        elif isinstance(self.price, Budget) and self._own_rate:
            move(net, notes.sites, notes.model, self.price, clock.step, last or UNTOLD)
        for gate in stochastic(net, notes.sites):
            gate.constrain()
        if last is not None and clock.step >= last and (self.holding or isinstance(self.price, Budget)):
            self._settle(net, notes, f"at step {clock.step:,} of {clock.steps:,}, where its gates are held")
        elif isinstance(self.price, Budget) and not silent(net, notes.sites):
            now, gain = self.price, 1.0
            if self._own_rate:
                now, gain = self.price.at(scratch_course(last or UNTOLD).done(clock.step)), GAIN
            now.ascend(net, notes.model, attached(net), "+".join(self.places), clock.step, clock.steps, gain)

    def _close_silent(self, net: nn.Module, notes: _Notes, clock: Clock, last: int | None) -> None:
        """Gates of a trained network: those that matter least per cost close on a schedule, or, with a price, all begin to draw."""
        if isinstance(self.price, Budget):
            if last is not None:
                when = f"at step {clock.step:,} of {clock.steps:,}"
                close_silent(net, notes.sites, notes.model, self.price, clock.step, last, (when, self._advice(net)))
        elif clock.step >= watched(clock.steps):
            of = "macs" if isinstance(self.price, Price) and self.price.of == "macs" else "parameters"
            draw_by_rank(net, notes.sites, importance_per_cost(net, notes.sites, notes.model, (of,)))

    def finish(self, net: nn.Module) -> None:
        restore_momenta(net)
        notes = self._notes(net)
        if isinstance(self.price, Budget) and not _held(net, notes.sites):
            self._settle(net, notes, "when the network was finished")

    def _settle(self, net: nn.Module, notes: _Notes, when: str) -> None:
        """From now on the gates stay as they are; with a budget, first on a support of the asked size."""
        if isinstance(self.price, Budget):
            meet(net, notes.sites, notes.model, self.price, (when, self._advice(net)))
        for gate in stochastic(net, notes.sites):
            gate.freeze()
        if self.end.rewind is None:  # else they go back with the weights
            renew_statistics(net)

    def _advice(self, net: nn.Module) -> str:
        faster = "" if self.gate_lr is None else f", raise gate_lr ({self.gate_lr:g} now)"
        held = self._held_for(silent(net, self.sites(net)))
        return (
            f"Train for more steps{faster}, or change hold ({held:g} now): the gates close before it, and the weights "
            "recover in it"
        )


def _held(net: nn.Module, found: tuple[Site, ...]) -> bool:
    return all(gate.frozen for site in found if isinstance(gate := gate_of(net, site), StochasticGate))


def _all_used(what: str, patterns: Sequence[str], found: tuple[Site, ...]) -> None:
    """Refuse patterns that no gated layer matches: most likely a typing error."""
    layers = sorted({layer for site in found for layer in site.layers})
    for pattern in patterns:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            raise ValueError(f"{what} names {pattern!r}, but the gated layers are {', '.join(layers)}")
