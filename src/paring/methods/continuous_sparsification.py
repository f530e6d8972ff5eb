"""Continuous Sparsification (Savarese, Silva, Maire, NeurIPS 2020, arXiv 1912.04427).

    minimise over w and s   loss(w ⊙ σ(β s)) + λ ‖σ(β s)‖₁,     β: 1 → final_beta within every round of search

Between rounds s ← min(β s, s0), with β as it is at the end of the round: what is clearly closed stays so, what is open
starts anew. Weights are not rewound between rounds. After the last search the mask is H(s) = [s > 0], and one more
round trains what is left:

    ticket = "rewind"   from the weights after `rewind` of the first round, schedule included
             "prune"    from the weights as they are, at the last learning rate, or on the whole schedule
             "none"     not at all: the method ends with the last search

With a `density` nobody has to search for λ and s0. All logits are shifted alike, every few steps, so that the asked
share of them is positive: that is a penalty μ Σ s on the logits themselves, with μ solved for. Round r of R asks for
density^(r/R). At the end the highest logits are open, exactly as many as asked. β = 1 with a threshold chosen
afterwards, an ablation, is `ContinuousSparsification(final_beta=1, density=0.1, steer=False)`.

Differences from the authors' code, on purpose: it resets β before it applies the rule between rounds, so negative
logits keep their size there; it counts a weight as removed where σ(β s) underflows (s < -0.44), here where s ≤ 0; the
optimizer forgets its state between rounds; a rewound ticket goes on at step `to` of the schedule and not at its
beginning; β grows with every step as in the paper (`per="epoch"`: as in the code).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from paring import select
from paring.core import (
    At,
    Clock,
    Method,
    Places,
    Probe,
    Rewind,
    attached,
    hashed_as,
    in_steps,
    settle_places,
    steps_or_share,
    validate,
)
from paring.gates import SigmoidGate, Site, gate_of, put_gate, weight_of, weight_sites

_TICKETS = ("rewind", "prune", "none")
_REWIND = 1 / 8  # of a short round: where its ticket goes back to
_LOOK = 10  # optimizer steps between two shifts of the logits


@dataclass(frozen=True)
class ContinuousSparsification(Method):
    """Continuous Sparsification.

    Args:
        rate: λ, for every weight (1e-8 hardly matters: s0 and the loss decide).
        s0: initial logit; higher keeps more (the paper tries -0.3 to 0.3).
        searches: rounds of search.
        final_beta: temperature at the end of a round; 1 for none.
        ticket: what follows the search, see above.
        rewind: rewind point as epochs of the first round ("2ep") or optimizer steps (500); None: two epochs, or an eighth of a
            round where that is shorter.
        flat: `ticket="prune"` trains at the last learning rate; False repeats the whole schedule.
        density: share of the weights to keep, in (0, 1], instead of whatever λ and s0 lead to.
        steer: shift the logits towards the density while searching; False only ranks them at the end.
        allocation: how the layers share the density; `select.Global()` is one threshold for all.
        at: which weights: "weights", a selection such as "weights:!fc2", or several of them; see `paring.core.places`.
        per: whether β grows with every "step" or every "epoch".
        rescale: the authors' factor 1/σ(s0) on all masks, and with them in the penalty.
        gate_lr: learning rate of the logits as a multiple of the weights'.

    Raises:
        ValueError: a number out of its range, an unknown word, or an allocation without a density to share.
    """

    goal: ClassVar[str | None] = "tickets"

    rate: float = 1e-8
    s0: float = 0.0
    searches: int = 3
    final_beta: float = 200.0
    ticket: Literal["rewind", "prune", "none"] = "rewind"
    rewind: str | int | None = field(default=None, metadata=hashed_as("to"))
    flat: bool = True
    density: float | None = None
    steer: bool = True
    allocation: select.Allocation = select.Global()  # noqa: RUF009  # a frozen value
    at: At = Places(("weights",))  # noqa: RUF009  # a frozen value
    per: Literal["step", "epoch"] = "step"
    rescale: bool = False
    gate_lr: float = 1.0

    def __post_init__(self) -> None:
        settle_places(self, "weights")
        name = type(self).__name__
        validate.not_negative(self, "rate", "gate_lr")
        validate.finite(self, "s0")
        validate.whole_number(self, "searches")
        validate.finite(self, "final_beta")
        if self.final_beta < 1:
            validate.refuse(self, "final_beta", "must be at least 1")
        validate.one_of(self, "ticket", _TICKETS)
        validate.one_of(self, "per", ("step", "epoch"))
        if self.density is not None:
            validate.within(self, "(0, 1]", "density")
        if self.density is None and self.allocation != select.Global():
            raise ValueError(f"{name}(allocation=...) shares a density among layers: give density=... as well")
        if self.rewind is not None:
            in_steps(f"{name}(rewind=...)", self.rewind, 1, least=0)

    @property
    def rounds(self) -> int:
        return self.searches + (self.ticket != "none")

    def beta(self, clock: Clock) -> float:
        """The temperature at this time.

        Raises:
            ValueError: it grows, but the length of a round (or of an epoch) is unknown.
        """
        if self.final_beta == 1:
            return 1.0
        if clock.steps is None or (self.per == "epoch" and clock.epoch_steps is None):
            lacking = "steps" if clock.steps is None else "epoch_steps"
            raise ValueError(
                f"ContinuousSparsification(final_beta={self.final_beta}): the temperature grows within a round; tell "
                f"attach how long that is with {lacking}=..."
            )
        grow = select.Geometric(self.final_beta)
        if self.per == "step" or clock.epoch_steps is None:
            return grow(clock.step / clock.steps)
        last = math.ceil(clock.steps / clock.epoch_steps) - 1
        return grow(min(clock.step // clock.epoch_steps, last) / max(1, last))

    def asked(self, round: int) -> float | None:
        """Share of the weights to be open at the end of this round of search, from 0; None without a density."""
        return None if self.density is None else float(self.density ** ((round + 1) / self.searches))

    def decided(self, round: int) -> int:
        return min(round, self.searches - 1)

    def point(self, clock: Clock) -> int | None:
        return self._point(clock) if self.ticket == "rewind" else None

    def begin(self, clock: Clock) -> Rewind:
        if clock.round < self.searches:
            return Rewind()
        if self.ticket == "rewind":
            return Rewind(weights=True, step=self._point(clock))
        return Rewind(flat=self.flat)

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = weight_sites(net, probe, self.at)
        modules = dict(net.named_modules())
        for site in found:
            weight = weight_of(net, site)
            gate = SigmoidGate(
                site.shape,
                s0=self.s0,
                rescale=self.rescale,
                lr_scale=self.gate_lr,
                device=weight.device,
                dtype=weight.dtype,
            )
            put_gate(modules, site, gate)
        attached(net).notes[self] = found

    def on_start(self, net: nn.Module, clock: Clock) -> None:
        point = self._point(clock) if self.ticket == "rewind" else 0
        if clock.steps is not None and point >= clock.steps:
            raise ValueError(
                f"ContinuousSparsification(rewind={self.rewind!r}) is step {point}, but a round has only {clock.steps}: give an earlier "
                "step, or train longer"
            )
        if clock.round < self.searches:
            self._heat(net, self.beta(clock))
        else:
            self._clear(net)

    @property
    def has_penalty(self) -> bool:
        return self.rate > 0

    def unfinished(self, net: nn.Module, clock: Clock) -> str | None:
        if clock.round >= self.searches or self.beta(clock) >= self.final_beta:
            return None
        return f"the temperature of its gates grows within a round and stands at {self.beta(clock):.3g}, not {self.final_beta:.3g}"

    def penalty(self, net: nn.Module, clock: Clock) -> Tensor | None:
        if self.rate == 0 or clock.round >= self.searches:
            return None
        return self.rate * torch.stack([(gate.prob_open() * gate.factor).sum() for _, gate in self._gates(net)]).sum()

    def on_grads(self, net: nn.Module, clock: Clock) -> None:
        for _, gate in self._gates(net):
            gate.rest()

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        if clock.round >= self.searches:
            self._clear(net)
            return
        self._heat(net, self.beta(clock))
        asked = self.asked(clock.round)
        if asked is not None and self.steer and clock.step % _LOOK == 0:
            self._shift(net, asked)

    def on_round(self, net: nn.Module, clock: Clock) -> None:
        last = clock.round == self.searches - 1
        if last:
            self._project(net)
        for _, gate in self._gates(net):
            if last:
                gate.freeze()
            else:
                gate.again(self.s0)

    def finish(self, net: nn.Module) -> None:
        self._project(net)

    def _gates(self, net: nn.Module) -> Sequence[tuple[Site, SigmoidGate]]:
        return [
            (site, gate) for site in attached(net).notes[self] if isinstance(gate := gate_of(net, site), SigmoidGate)
        ]

    def _point(self, clock: Clock) -> int:
        name = "ContinuousSparsification(rewind=...)"
        return steps_or_share(name, self.rewind, clock, usual="2ep", share=_REWIND, least=0)

    @torch.no_grad()
    def _heat(self, net: nn.Module, beta: float) -> None:
        for _, gate in self._gates(net):
            gate.beta.fill_(beta)

    @torch.no_grad()
    def _clear(self, net: nn.Module) -> None:
        """Closed weights are zero, whatever momentum and weight decay did to them."""
        for site, gate in self._gates(net):
            weight_of(net, site).mul_(gate.support())

    def _ranked(self, net: nn.Module, density: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits and the mask of the highest of them, by layer."""
        logits = {site.layer: gate.s.detach() for site, gate in self._gates(net)}
        return logits, select.masks(logits, density, self.allocation, select.Weights())

    @torch.no_grad()
    def _shift(self, net: nn.Module, density: float) -> None:
        """Shift logits so that as many are positive as asked: all alike, or by layer for other allocations."""
        logits, masks = self._ranked(net, density)
        if isinstance(self.allocation, select.Global):
            middle = _border(logits, masks)
            for logit in logits.values():
                logit.sub_(middle)
            return
        for name, logit in logits.items():
            logit.sub_(_border({name: logit}, {name: masks[name]}))

    @torch.no_grad()
    def _project(self, net: nn.Module) -> None:
        """With a density, open exactly the highest logits."""
        found = self._gates(net)
        if self.density is None or all(gate.frozen for _, gate in found):
            return
        _, masks = self._ranked(net, self.density)
        for site, gate in found:
            gate.choose(masks[site.layer])


def _border(logits: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
    """The middle between the lowest logit inside the masks and the highest outside; where one is missing, the other."""
    inside = torch.cat([logit[masks[name]] for name, logit in logits.items()])
    outside = torch.cat([logit[~masks[name]] for name, logit in logits.items()])
    if not len(inside):
        return outside.max()
    if not len(outside):
        return inside.min() - torch.finfo(inside.dtype).eps
    return (inside.min() + outside.max()) / 2
