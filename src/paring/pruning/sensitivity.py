"""What each group of units costs, and what the loss says when a part of it goes: which layers can be cut, and which not.

Each group is looked at alone, the others stay whole. Its least important units are closed, a share at a time, and the loss is
measured twice on the same batches: as it is then, and after what stays has taken over the work (`repair`, and BatchNorm
statistics made anew), as `prune` would leave it before training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from paring.analysis.capture import check_copies
from paring.core import At, Example, Inputs, Places, Progress, Watch, plain_net
from paring.core.default_loss import Loss, cross_entropy, mean_loss
from paring.core.torch_masks import multiplied_in
from paring.core.unwrap import without_wrapped_parts
from paring.pruning.calls import example_of
from paring.pruning.gated import GatedCopy
from paring.pruning.norms import renew_statistics
from paring.pruning.prune import called_with
from paring.pruning.repair import Repair
from paring.pruning.search import Search

WITHIN = 0.05  # rise of the loss, as a share of it, up to which a cut is said to cost nothing


@dataclass(frozen=True)
class Trial:
    """One group with some of its units closed.

    Attributes:
        share: of its units that was asked to go.
        gone: units that went; at least one stays.
        parameters, macs: what is left of the whole network, as shares of it.
        loss: with these units closed.
        repaired: the loss after what stays has taken over their work; None where `Search(repair=False)` asks for none.
    """

    share: float
    gone: int
    parameters: float
    macs: float
    loss: float
    repaired: float | None

    @property
    def best(self) -> float:
        """The repaired loss where there is one."""
        return self.loss if self.repaired is None else self.repaired


@dataclass(frozen=True)
class GroupTrials:
    """A group of units that can only go together.

    Attributes:
        layers: where its units are computed.
        units: how many.
        parameters, macs: of these layers.
        trials: one for each share.
    """

    layers: tuple[str, ...]
    units: int
    parameters: int
    macs: int
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` found; `str()` is a table, `to_dict()` the same for machines.

    Attributes:
        title: class of the network.
        loss: of the whole network on the batches.
        renewed: the same with BatchNorm statistics made anew from these batches: what repaired losses are compared with. None
            without repair.
        parameters, macs: of the whole network.
        rows: groups in order of execution.
    """

    title: str
    loss: float
    renewed: float | None
    parameters: int
    macs: int
    rows: tuple[GroupTrials, ...]

    def rise(self, trial: Trial) -> float:
        """By how much the loss rises: repaired, where there is repair."""
        return trial.best - self._whole(trial)

    def _whole(self, trial: Trial) -> float:
        return self.loss if trial.repaired is None or self.renewed is None else self.renewed

    def can_go(self, row: GroupTrials, within: float = WITHIN) -> Trial | None:
        """The largest cut of this group, and of all smaller ones that were tried, whose loss rises by at most this share of it.

        Args:
            row: the group.
            within: such as 0.05 for five percent.

        Returns:
            None where not even the smallest does.
        """
        found = None
        for trial in sorted(row.trials, key=lambda trial: trial.share):
            if not trial.best <= self._whole(trial) + within * abs(self.loss):
                break
            found = trial if trial.gone else found
        return found

    def to_dict(self, within: float = WITHIN) -> dict[str, Any]:
        """Everything, with what can go; losses that are not finite are None."""
        groups = []
        for row in self.rows:
            best = self.can_go(row, within)
            trials = [{name: _finite(value) for name, value in asdict(trial).items()} for trial in row.trials]
            groups.append({**asdict(row), "trials": trials, "can_go": None if best is None else best.share})
        known = {
            "title": self.title,
            "loss": _finite(self.loss),
            "renewed": _finite(self.renewed),
            "parameters": self.parameters,
            "macs": self.macs,
        }
        return {**known, "within": _finite(within), "groups": groups}

    def table(self, within: float = WITHIN) -> str:
        """The groups as text."""
        shares = [trial.share for trial in self.rows[0].trials]
        heads = ["units of", "units", "parameters", "MACs", *(f"-{share:.0%}" for share in shares), "can go"]
        body = []
        for row in self.rows:
            best = self.can_go(row, within)
            told = "-" if best is None else f"{best.share:.0%}, MACs {best.macs - 1:+.0%}"
            losses = [_told(trial) for trial in row.trials]
            body.append([_names(row.layers), *(f"{n:,}" for n in (row.units, row.parameters, row.macs)), *losses, told])
        widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]
        anew = "" if self.renewed is None else f" ({self.renewed:.4g} with its statistics made anew)"
        anew = "" if self.renewed == self.loss else anew
        lines = [f"{self.title}: loss {self.loss:.4g}{anew}, {self.parameters:,} parameters, {self.macs:,} MACs"]
        for cells in (heads, *body):
            padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
            lines.append("  ".join(padded).rstrip())
        repaired = any(trial.repaired is not None for row in self.rows for trial in row.trials)
        what = "the loss when so many of the group's least important units go, alone"
        what += ": closed → repaired" if repaired else ""
        return "\n".join([*lines, f"-X%: {what}. can go: the loss rises by at most {within:.0%}"])

    def __str__(self) -> str:
        return self.table()


def sensitivity(
    net: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    example: Example | None = None,
    at: At = Places(("units",)),  # noqa: B008  # a frozen value
    shares: Sequence[float] = (0.25, 0.5, 0.75),
    search: Search = Search(),  # noqa: B008  # a frozen value
    watch: Watch | None = None,
) -> Sensitivity:
    """What each group of units costs, and the loss when shares of its least important units go, each group alone.

    Args:
        net: a trained network; it stays as it is.
        batches: what the loss is measured on; the first `search.batches` of them.
        loss: of a network on a batch, a scalar; by default as in `prune`.
        example: what the network takes, to capture it; by default what the loss calls it with.
        at: which units are looked at; see `paring.core.places`.
        shares: of a group's units that go, each in (0, 1).
        search: how units are judged (`importance`, `batches`), and whether what stays is repaired (`repair`, `damping`).
        watch: called with a `paring.core.Progress` after each group.

    Raises:
        ValueError: a share outside (0, 1), no batches, nothing that can go, a loss that is no scalar or not finite.
        paring.CaptureError: the network cannot be captured.
    """
    net, loss = multiplied_in(without_wrapped_parts(plain_net(net, "sensitivity"))), loss or cross_entropy
    check_copies(net)
    if not shares or not all(0 < share < 1 for share in shares):
        raise ValueError(f"sensitivity(shares={tuple(shares)!r}): shares of a group's units that go, each in (0, 1)")
    stream = iter(batches)
    seen = list(islice(stream, search.batches))
    if not seen:
        raise ValueError("batches is empty: give an iterable of at least one batch, such as a DataLoader or a list")
    given = Inputs.of(example) if example is not None else example_of(net, called_with(net, seen, loss))
    gated = GatedCopy.of(net, given, at)
    whole = torch.ones(gated.units, dtype=torch.bool)
    gated.set(whole)
    dense = mean_loss(gated.net, seen, loss)
    judged = search.importance.look(gated, seen, loss)
    repair, renewed = Repair(gated, seen, loss, fit=search.repair, damping=search.damping, more=stream), None
    if search.repair:
        renew_statistics(gated.net, seen, loss)
        renewed = mean_loss(gated.net, seen, loss)
    cost, rows, start = gated.model(), [], 0
    for number, (site, size) in enumerate(zip(gated.sites, gated.sizes, strict=True)):
        order = judged[start : start + size].argsort(stable=True) + start
        trials = []
        for share in sorted(shares):
            gone = min(max(round(share * size), 1), size - 1)
            mask = whole.clone()
            mask[order[:gone]] = False
            trials.append(_trial(gated, repair, mask, share, gone, seen, loss))
        own = [row for row in cost.rows if row.name in site.layers]
        parameters, macs = (int(sum(float(getattr(row, name)) for row in own)) for name in ("parameters", "macs"))
        rows.append(GroupTrials(site.layers, size, parameters, macs, tuple(trials)))
        start += size
        if watch is not None:
            watch(Progress(number + 1, len(gated.sites), _names(site.layers)))
    return Sensitivity(type(net).__name__, dense, renewed, int(cost.parameters), int(cost.macs), tuple(rows))


def _trial(
    gated: GatedCopy, repair: Repair, mask: Tensor, share: float, gone: int, seen: list[Any], loss: Loss
) -> Trial:
    left, repaired = gated.shares(mask), None
    repair.undo()
    gated.set(mask)
    closed = mean_loss(gated.net, seen, loss)
    if repair.fits:
        repair.apply(mask)
        renew_statistics(gated.net, seen, loss)
        repaired = mean_loss(gated.net, seen, loss)
    return Trial(share, gone, left["parameters"], left["macs"], closed, repaired)


def _told(trial: Trial) -> str:
    return f"{trial.loss:.4g}" + ("" if trial.repaired is None else f" → {trial.repaired:.4g}")


def _names(layers: Sequence[str]) -> str:
    shown = ", ".join(name or "(net)" for name in layers[:2])
    return shown + (f" and {len(layers) - 2} more" if len(layers) > 2 else "")


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None
