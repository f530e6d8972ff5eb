"""What may go while training goes on, found on a copy: the network with its gates' final decisions and nothing else.

The copy has stock layers whose parameters are generic (random, nowhere zero), with exact zeros where a gate
is permanently closed. So a weight that merely happens to be zero now, like a zero-initialised scale, removes nothing, and
neither does a rectified sum of constants that merely happens to be negative: random signs and positive ones have to agree.
The plan takes exact zeros only, in train and eval mode alike: no weight has to move, and what stays trains on unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from paring.analysis.alone import alone
from paring.analysis.capture import capture
from paring.analysis.interpret import Interpretation, interpret
from paring.analysis.weights import dims as dims_of
from paring.core import (
    Gate,
    Gated,
    Inputs,
    Refusal,
    Removal,
    SelectLinear,
    gated_layers,
    gates,
    release,
    set_attachment,
)
from paring.core.fresh import let_go, refresh
from paring.core.shared_gate import SharedGate
from paring.gates import input_groups
from paring.removal.choose import offenders
from paring.removal.plan import ShrinkPlan, full_name, make_plan
from paring.removal.slices import Dims
from paring.removal.verify import verify
from paring.run.surgery.carry import Cuts, gate_dims, shared_cuts, tensors_of
from paring.run.surgery.gated_select import widen


@dataclass(frozen=True)
class Proposal:
    """A cut that would be exact.

    Attributes:
        cuts: what stays.
        spare: layers that have to stay whole, and why (a size written into the network's forward, say).
        parameters: of the network, gates included, before and after.
        macs: multiply-accumulates per example before and after.
        widths: layer -> outputs, for the layers that get smaller.
    """

    cuts: Cuts
    spare: dict[str, str]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    widths: dict[str, int]

    @property
    def saving(self) -> float:
        """The larger of the two savings, as a fraction of what there is now."""
        pairs = (self.parameters, self.macs)
        return max((1 - after / before for before, after in pairs if before), default=0.0)


@alone()
def propose(net: nn.Module, example: Inputs, removal: Removal, spare: Collection[str] = ()) -> Proposal | None:
    """The largest exact cut of `net` as its permanently closed gates stand; None when there is nothing to cut.

    Args:
        net: a gated network; it is left alone, and so is the random state.
        example: example arguments of the network.
        removal: how wide layers should stay.
        spare: layers known to have to stay whole.

    Raises:
        paring.CaptureError: the network cannot be captured.
    """
    if not any(bool(gate.permanently_closed().any()) for _, _, gate in gates(net)):
        return None
    copy_, groups = refresh(_closed_copy(net)), input_groups(net)
    widths = widen(copy_, example)
    captured = capture(copy_, example)
    found, other = interpret(copy_, captured, training=False), interpret(_positive(copy_), captured, training=True)
    spare = [*spare, *_fixed(copy_, [site.name for site in found.sites])]
    drop_inputs = bool(widths) or any(kind == "inputs" for _, kind, _ in gates(net))

    def plan_for(spared: Sequence[str]) -> ShrinkPlan:
        return make_plan(
            found,
            spare=[*spare, *spared],
            drop_inputs=drop_inputs,
            other=other,
            zeros_only=True,
            multiple_of=removal.multiple_of,
            input_groups=groups,
        )

    def problem(spared: Sequence[str]) -> Refusal | None:
        plan = plan_for(spared)
        return verify(copy_, plan, example, train=True) if plan else None

    plan, bad = plan_for(()), {}
    if problem(()):
        bad = offenders([site.name for site in found.sites], problem)
        plan = plan_for(list(bad))
    cuts = _on_network(plan, net, widths)
    return _proposal(cuts, net, found, bad) if cuts else None


def _fixed(net: nn.Module, layers: list[str]) -> list[str]:
    """Layers inside an `nn.MultiheadAttention`, which has its sizes written down and keeps them while training."""
    inside = [path for path, module in net.named_modules() if isinstance(module, nn.MultiheadAttention)]
    return [name for name in layers if any(name == path or name.startswith(f"{path}.") for path in inside)]


class _Final(Gate):
    """A gate's last word: zero where it is permanently closed, one elsewhere."""

    def __init__(self, is_open: Tensor) -> None:
        super().__init__()
        self.register_buffer("is_open", is_open)

    @property
    def shape(self) -> torch.Size:
        return self.value().shape

    def forward(self, batch: int | None = None) -> Tensor:
        return self.value()

    def prob_open(self) -> Tensor:
        return self.value()

    def value(self) -> Tensor:
        return self.get_buffer("is_open").float()


def _closed_copy(net: nn.Module) -> nn.Module:
    copy_ = copy.deepcopy(let_go(net))
    set_attachment(copy_, None)
    for _, layer in gated_layers(copy_):
        for kind, _, gate in list(layer.held()):
            closed = gate.permanently_closed()
            if kind == "inputs" and bool(closed.all()):
                closed[0] = False  # a layer has to read something
            parent, _, name = _mounted_as(layer, gate).rpartition(".")
            layer.get_submodule(parent)._modules[name] = _Final(~closed)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in copy_.parameters():
            parameter.grad = None
            if parameter.is_floating_point():
                parameter.copy_(_generic(parameter.shape, generator))
    release(copy_)
    return copy_


def _positive(copy_: nn.Module) -> nn.Module:
    """The copy with other generic parameters, none of them negative."""
    other = copy.deepcopy(copy_)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.is_floating_point():
                parameter.abs_()
    return other


def _generic(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Random, nowhere zero, and of a size that keeps activations in range."""
    value = torch.rand(shape, generator=generator) + 0.5
    if len(shape) < 2:
        return value
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    scaled: Tensor = value * sign / max(1.0, prod(shape[1:])) ** 0.5
    return scaled


def _mounted_as(layer: Gated, gate: Gate) -> str:
    names: dict[int, str] = {id(child): name for name, child in layer.named_modules()}
    return names[id(gate)]


def _on_network(plan: ShrinkPlan, net: nn.Module, widths: dict[str, int]) -> Cuts:
    """The plan of the copy in terms of the network: gates too, and the columns that each `SelectLinear` holds."""
    assert not plan.folds, "exact zeros leave nothing to fold"
    assert not plan.merges, "exact zeros leave nothing to merge"
    cuts, kept = Cuts(sizes=dict(plan.sizes)), dict[str, dict[int, Tensor]]()
    for one in plan.cuts:
        kept.setdefault(one.name, {})[one.dim] = one.keep
    for name, reads in plan.selects.items():
        if name not in widths:
            cuts.reads[name] = reads
    for name, width in widths.items():
        layer, weight = net.get_submodule(name), full_name(name, "weight")
        assert isinstance(layer, SelectLinear)
        dims = kept.setdefault(weight, {})
        held = torch.isin(layer.reads.cpu(), dims.pop(1, torch.arange(width)))
        if not bool(held.all()):
            dims[1] = held.nonzero().flatten()
        if not dims:
            del kept[weight]
        cuts.reads[name] = plan.selects.get(name)
    cuts.kept.update(kept)
    for name, module in net.named_modules():
        if isinstance(module, Gated):
            for kind, leaf, gate in module.held():
                own = gate_dims(module, kind, cuts.kept.get(full_name(name, leaf or "weight"), {}))
                if own and not isinstance(gate, SharedGate):
                    cuts.kept.update(tensors_of(full_name(name, _mounted_as(module, gate)), gate, own))
    cuts.kept.update(shared_cuts(net, kept))
    return cuts


def _proposal(cuts: Cuts, net: nn.Module, found: Interpretation, bad: dict[str, str]) -> Proposal:
    sizes = {name: parameter.shape for name, parameter in net.named_parameters()}
    after = {name: _size(shape, cuts.kept.get(name, {})) for name, shape in sizes.items()}
    whole = sum(product.macs * len(product.left) for product in found.products)  # attention keeps its size
    macs, widths = [whole, whole], {}
    for site in found.sites:
        weight = full_name(site.name, "weight")
        if not site.lookup and weight in sizes:
            macs[0] += site.positions * sizes[weight].numel()
            macs[1] += site.positions * after[weight]
        unit = dims_of(site.module)[0]
        if unit in cuts.kept.get(weight, {}):
            widths[site.name] = len(cuts.kept[weight][unit])
    return Proposal(
        cuts, bad, (sum(s.numel() for s in sizes.values()), sum(after.values())), (macs[0], macs[1]), widths
    )


def _size(shape: torch.Size, dims: Dims) -> int:
    return prod(len(dims[d]) if d in dims else n for d, n in enumerate(shape))
