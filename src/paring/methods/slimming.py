"""Network slimming (Liu et al. 2017): an L1 penalty on the scale of every unit, one threshold, then fine-tuning.

    first round    loss + rate * sum |gamma|
    then           units with the smallest |gamma| of the whole network are closed
    second round   the whole schedule again, without the penalty

gamma is the weight of the unit's BatchNorm. The paper needs one behind every layer it prunes; where there is none, a trained
factor of one per unit takes its place. Units that belong together (a residual stream) go together, by their mean |gamma|.
What is closed is removed exactly by `finish`, the shift of its norm included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from paring import select
from paring.core import At, Clock, Method, Places, Probe, Rewind, attached, settle_places, validate
from paring.gates import MaskGate, ScaleGate, Site, gate_of, put_gate, sites, sites_of


@dataclass(frozen=True)
class Slimming(Method):
    """Network slimming.

    Args:
        density: share of the units that stays, in (0, 1].
        rate: of the L1 penalty on the scales (1e-4 for VGG, 1e-5 for ResNets in the paper).
        at: which units: "units", or a selection such as "units:Conv2d".
        allocation: how the layers share the density; `select.Global(least=1)`: one threshold, no layer disappears.

    Raises:
        ValueError: a number out of its range.
    """

    goal: ClassVar[str | None] = "small"

    density: float = 0.3
    rate: float = 1e-4
    at: At = Places(("units",))  # noqa: RUF009  # a frozen value
    allocation: select.Allocation = select.Global(least=1)  # noqa: RUF009  # a frozen value

    def __post_init__(self) -> None:
        settle_places(self, "units", "heads")
        validate.within(self, "(0, 1]", "density")
        validate.not_negative(self, "rate")

    @property
    def rounds(self) -> int:
        return 2

    def begin(self, clock: Clock) -> Rewind:
        return Rewind()

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = sites(net, probe.wiring, self.at)
        modules = dict(net.named_modules())
        for site in found:
            weight = next(modules[site.module].parameters())
            if _norms(net, site):
                put_gate(modules, site, MaskGate(site.shape, device=weight.device))
            else:
                put_gate(modules, site, ScaleGate(site.shape, device=weight.device, dtype=weight.dtype))
        attached(net).notes[self] = found

    @property
    def has_penalty(self) -> bool:
        return self.rate > 0

    def penalty(self, net: nn.Module, clock: Clock) -> Tensor | None:
        if clock.round > 0:
            return None
        parts = [scale.abs().sum() for site in sites_of(net, self) for scale, _ in _scales(net, site)]
        return self.rate * torch.stack(parts).sum()

    def on_round(self, net: nn.Module, clock: Clock) -> None:
        scores = {site.layer: _score(_scales(net, site)) for site in sites_of(net, self)}
        found = select.masks(scores, self.density, self.allocation, select.Weights())
        for site in sites_of(net, self):
            gate = gate_of(net, site)
            assert isinstance(gate, MaskGate)
            gate.choose(found[site.layer])
            gate.freeze()


def _scales(net: nn.Module, site: Site) -> list[tuple[Tensor, Tensor]]:
    """The factors of the site's units, (units,), and which units have one: a trained one, or one of each of their norms."""
    gate = gate_of(net, site)
    return [(gate.scale, torch.ones_like(gate.scale))] if isinstance(gate, ScaleGate) else _norms(net, site)


def _score(scales: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean magnitude of every unit's factors, (units,)."""
    total = torch.stack([scale.detach().abs() for scale, _ in scales]).sum(0)
    return total / torch.stack([there for _, there in scales]).sum(0).clamp(min=1)


def _norms(net: nn.Module, site: Site) -> list[tuple[Tensor, Tensor]]:
    """Gamma of the norms behind the site's units, and which units each has; empty when one of the modules is no norm."""
    if not site.mounts:
        module = net.get_submodule(site.module)
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            return []
        return [(module.weight, torch.ones_like(module.weight))]
    found = []
    for mount in site.mounts:
        module = net.get_submodule(mount.module)
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            return []
        index = torch.tensor(mount.index, device=module.weight.device)
        rows = (index >= 0).nonzero().flatten()
        spread = torch.zeros(site.shape, device=index.device, dtype=module.weight.dtype)
        found.append((spread.index_copy(0, index[rows], module.weight[rows]), spread.index_fill(0, index[rows], 1.0)))
    return found
