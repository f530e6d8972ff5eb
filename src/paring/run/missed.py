"""Whether the finished network has the size that was asked for, and the one that its gates left; if not, why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paring.core import Inputs, Method, gates
from paring.cost import Cost, measure
from paring.gates import live, openness, support
from paring.removal import Report
from paring.run.probe import NetworkProbe

MISSED = 0.02  # what is larger than asked, or than its gates leave, by more than this share is said
_SHOWN = 3  # layers named


@dataclass(frozen=True)
class Asked:
    """What size a network should have once its gates are folded in and what closed is removed.

    Attributes:
        dense: cost of the network as it was at first; None where nothing is asked.
        gates: cost that the gates leave; None where no gate is on units or inputs, some are on single weights (what is
            open is a number of weights then, and no size of tensors), or closed columns should stay.
        targets, least: asked and smallest sizes, as in `Method`.
        zeros: whether zeros count as gone, as with gates on weights.
    """

    dense: Cost | None
    gates: Cost | None
    targets: Mapping[str, float]
    least: Mapping[str, float]
    zeros: bool

    @classmethod
    def of(cls, net: nn.Module, method: Method, probe: NetworkProbe, drop_inputs: bool) -> Asked:
        """What is asked of a gated network after its method's last decisions."""
        kinds, targets = {kind for _, kind, _ in gates(net)}, method.targets
        if not kinds or (not targets and "weights" in kinds):
            return cls(None, None, {}, {}, False)
        left = None
        if "weights" not in kinds and (drop_inputs or "inputs" not in kinds):
            with torch.no_grad():
                left = probe.costs(live(openness(net, probe.wiring, support), probe.wiring))
        return cls(probe.costs(), left, targets, method.least(net), "weights" in kinds)

    def missed(self, small: nn.Module, report: Report, example: Inputs) -> list[str]:
        """What to say of a finished network, a sentence or two for every cost that is too high.

        Args:
            small: the finished network.
            report: of its removal.
            example: its input.
        """
        if self.dense is None:
            return []
        names = [name for name in self.targets if not (self.zeros and name == "macs")]
        names += ["parameters"] if self.gates is not None and "parameters" not in names else []
        return [text for name in names if (text := self._missed(name, small, report, example))]

    def _missed(self, name: str, small: nn.Module, report: Report, example: Inputs) -> str:
        dense = float(getattr(self.dense, name))
        left = None if self.gates is None else float(getattr(self.gates, name)) / dense
        asked = self.targets.get(name, left)
        got = self._got(name, small, report, example) / dense
        if asked is None or got <= asked * (1 + MISSED):
            return ""
        text = f"asked for {asked:.1%} of the dense network's {name} and got {got:.1%}"
        if left is not None and got > left * (1 + MISSED):
            text = f"{text}; " if name in self.targets else f"the finished network has {got:.1%} of the dense {name}; "
            text += f"its gates leave {left:.1%}, but removal had to keep more{self._reasons(small, report)}"
        if name in self.least:
            text += f". With every gate closed but the last of each place it would be {self.least[name]:.1%}"
        return f"{text}. run.report lists what stayed"

    def _got(self, name: str, small: nn.Module, report: Report, example: Inputs) -> float:
        """This cost of the finished network; what a method added for good (a learned step, say) does not count."""
        if name == "macs":
            return float(measure(small, example).macs or 0)
        assert self.dense is not None
        whole, after = report.parameters
        if self.zeros:
            after = sum(int(torch.count_nonzero(p)) for p in small.parameters())
        return after - max(0.0, whole - float(self.dense.parameters))

    def _reasons(self, small: nn.Module, report: Report) -> str:
        """The layers with the most weights that their gates do not leave, and what the report says of them."""
        assert self.gates is not None
        modules, rows = dict(small.named_modules()), {row.layer: row for row in report.rows}
        more: dict[str, int] = {}
        for row in self.gates.rows:
            weight = getattr(modules.get(row.name), "weight", None)
            if isinstance(weight, Tensor) and row.name in rows and weight.numel() > float(row.weights):
                more[row.name] = weight.numel() - round(float(row.weights))
        shown = []
        for name in sorted(more, key=lambda name: -more[name])[:_SHOWN]:
            why = [f"{count} units: {reason}" for reason, count in rows[name].kept.items()]
            why += [f"rolled back: {report.rolled_back[name]}"] if name in report.rolled_back else []
            shown.append(f"'{name}' has {more[name]:,} weights more" + (f" ({'; '.join(why)})" if why else ""))
        return f": {', '.join(shown)}" if shown else ""
