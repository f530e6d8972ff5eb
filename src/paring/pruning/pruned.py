"""What `prune` did, for the user's eyes and for machines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from paring.core import short_repr, warn
from paring.methods import Budget
from paring.pruning.tune import Tuned
from paring.removal import Report

CLOSE = 0.1  # of an asked latency: what is measured may be off by so much
_SHORT = 0.9  # of what was asked: less is said
_STAYED = 0.02  # of the parameters that were to stay: more that did is said
_MISSED = {
    "latency": "times do not follow widths so far here, or the machine is busy. Ask for macs=, or measure again",
    "memory": "inputs and what cannot be cut decide here (pr.groups shows what can). Ask for more, or for macs=",
}
_COLLAPSED = 1.5  # times the loss of the original: said as a warning


def over(shares: Mapping[str, float], budget: Budget) -> list[str]:
    """Costs, by name, that are larger than asked; a latency by more than `CLOSE`."""
    slack = {"latency": CLOSE}
    return [name for name, asked in budget.targets.items() if shares[name] > asked * (1 + slack.get(name, 1e-9))]


def short(shares: Mapping[str, float], budget: Budget) -> bool:
    """Whether every cost is clearly smaller than asked."""
    return all(shares[name] < _SHORT * asked for name, asked in budget.targets.items())


@dataclass(frozen=True)
class Look:
    """How well a network does: its mean loss, and the user's metric."""

    loss: float
    metric: float | None = None


@dataclass(frozen=True)
class SiteRow:
    """Units that go together: their layers, and how many there were and are."""

    layers: tuple[str, ...]
    before: int
    after: int


@dataclass(frozen=True)
class Pruned:
    """What was asked, what is left, and what it costs.

    Attributes:
        budget: what was asked.
        shares: what is left, as shares of the dense network, by the name of the cost.
        rows: groups of units.
        removal: what `compact` did.
        looks: the original, right after the cut, and in the end.
        search_seconds: for choosing, repairing and removing.
        training: what training did.
        path: (share of the first cost, expected rise of the loss), as units went.
        uncut: layers none of whose units had a gate, each with the reason.
        predicted: shares that were predicted (latency, memory), where those in `shares` are measured.
    """

    budget: Budget
    shares: dict[str, float]
    rows: tuple[SiteRow, ...]
    removal: Report
    looks: tuple[Look, Look, Look]
    search_seconds: float
    training: Tuned
    path: tuple[tuple[float, float], ...]
    uncut: Mapping[str, str] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was asked and is not so, and what to do."""
        dense, cut, end = self.looks
        found = []
        if math.isfinite(cut.loss) and not math.isfinite(end.loss):
            found.append(
                f"the loss was {cut.loss:.4g} after the cut, and is {end.loss} after training: lower the learning rate, "
                "training=pr.Tune(..., optimizer=lambda p: torch.optim.SGD(p, lr=...)), or clip the gradient, pr.Tune(..., clip=1)"
            )
        if end.loss > _COLLAPSED * dense.loss and end.loss - dense.loss > 0.05:
            longer = "more epochs" if self.training.steps else "epochs=2 or more: nothing was trained after the cut"
            found.append(
                f"the loss rose from {dense.loss:.4g} to {end.loss:.4g}: ask for a larger budget, or for {longer}, or leave "
                'layers out by at="units:!NAME" (pr.sensitivity shows which lose most)'
            )
        missed = over(self.shares, self.budget)
        if short(self.shares, self.budget):
            told = ", ".join(f"{name} {got:.1%} of {asked:.1%}" for name, got, asked in self._pairs())
            if "latency" in self.budget.targets:
                missed = ["latency"]
            else:
                found.append(f"more went than asked ({told}): no unit that fits is left to keep")
        before, after = self.removal.parameters
        if after > (1 + _STAYED) * self.shares["parameters"] * before:
            found.append(
                f"{self.shares['parameters']:.1%} of the parameters were to stay, and {after / before:.1%} did: some units that "
                "were closed could not be removed (pruned.removal says which). They are zero, and cost as much as before"
            )
        found += [
            f"a {name} of {self.budget.targets[name]:.0%} of the dense network's was asked, and {self.shares[name]:.0%} was "
            f"measured: {_MISSED[name]}"
            for name in missed
        ]
        return tuple(found)

    def _pairs(self) -> list[tuple[str, float, float]]:
        return [(name, self.shares[name], asked) for name, asked in self.budget.targets.items()]

    def warn(self) -> None:
        """Warn of what `notes` says."""
        for note in self.notes:
            warn(note)

    def to_dict(self) -> dict[str, Any]:
        """The same for machines."""
        dense, cut, end = (asdict(look) for look in self.looks)
        return {
            "budget": short_repr(self.budget),
            "shares": self.shares,
            "groups": [asdict(row) for row in self.rows],
            "parameters": list(self.removal.parameters),
            "dense": dense,
            "cut": cut,
            "end": end,
            "search_seconds": self.search_seconds,
            "train_seconds": self.training.seconds,
            "steps": self.training.steps,
            "path": [list(pair) for pair in self.path],
            "uncut": dict(self.uncut),
            "notes": [*self.notes, *self.removal.notes],
        }

    def __str__(self) -> str:
        dense, cut, end = self.looks
        before, after = self.removal.parameters
        lines = [f"parameters {before:,} → {after:,} ({after / before:.1%})"]
        lines += [f"{name} {got:.1%} of the dense network, asked {asked:.1%}" for name, got, asked in self._pairs()]
        steps = [("dense", dense), ("cut", cut)] + ([("trained", end)] if self.training.steps else [])
        lines.append("loss " + " → ".join(f"{look.loss:.4g} ({name})" for name, look in steps))
        if dense.metric is not None:
            told = [(name, look.metric) for name, look in steps]
            lines.append("metric " + " → ".join(f"{math.nan if m is None else m:.4g} ({name})" for name, m in told))
        lines.append(f"{self.search_seconds:.1f} s to choose and cut, {self.training.seconds:.1f} s to train")
        width = max(len(_names(row)) for row in self.rows)
        lines += ["", f"{'units of'.ljust(width)}  before  after  left"]
        for row in self.rows:
            lines.append(f"{_names(row).ljust(width)}  {row.before:6,}  {row.after:5,}  {row.after / row.before:4.0%}")
        for reason in dict.fromkeys(self.uncut.values()):
            layers = tuple(name for name, why in self.uncut.items() if why == reason)
            lines.append(f"units of {_named(layers)} all stay" + (f": {reason}" if reason else ""))
        lines += self.removal.notes
        lines += [f"! {note}" for note in self.notes]
        return "\n".join(lines)


def _names(row: SiteRow) -> str:
    return _named(row.layers)


def _named(layers: tuple[str, ...]) -> str:
    shown = ", ".join(name or "(net)" for name in layers[:3])
    return shown + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
