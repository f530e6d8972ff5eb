"""Conditional computation: in a step in which a gate draws an exact zero, its unit is not computed.

The L0 paper notes that hard gates allow this while training; this does it. All gates are drawn first; then the network
runs on the rows and columns of its weights that can matter in this step. Outputs and gradients are those of the whole
network up to rounding: a unit times zero passes nothing on and gets no gradient.

A unit is left out when its own gate is zero, or when every column that reads it has an input gate of zero. Units in front
of a BatchNorm, units that share a gate, and gates that draw one sample per example are always computed: running
statistics would miss examples, and the others have no unit that is closed for all. In eval mode the network runs whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from paring.analysis import Layer, Wiring, wiring
from paring.core import Gated, Inputs, derived, gateable, set_attachment, strip
from paring.core.fresh import let_go
from paring.gates import StochasticGate
from paring.run.distributed.sharded import refuse_sharded
from paring.run.surgery.folded import Judged, outputs


@dataclass(frozen=True)
class _Place:
    """One layer: where its units and columns come from, and its gates."""

    layer: Layer
    module: nn.Module
    units: StochasticGate | None
    inputs: StochasticGate | None


def conditional(net: nn.Module, example: Inputs, multiple_of: int) -> Conditional:
    """The network as it is now, to be called in its place; see `Conditional`.

    Raises:
        ValueError: it is sharded, or nothing can be left out of it.
    """
    refuse_sharded(net, "conditional computation")
    stock = copy.deepcopy(let_go(net))
    set_attachment(stock, None)
    strip(stock)
    found = wiring(stock, example)
    made = Conditional(net, found, multiple_of)
    _check(net, found, example)
    return made


class Conditional:
    """A network, called like the network itself, that leaves out what its gates have closed in this step.

    Args:
        net: a gated network.
        wiring: its wiring.
        multiple_of: convolutions compute at least so many units at a time and multiples of it (some of them for
            nothing): processors are built for round widths, and every new width costs them preparation.

    Raises:
        ValueError: there is no unit that could be left out.
    """

    def __init__(self, net: nn.Module, wiring: Wiring, multiple_of: int = 16) -> None:
        if multiple_of < 1:
            raise ValueError(f"conditional computation in multiples of {multiple_of}: must be at least 1")
        self.net, self.multiple_of = net, multiple_of
        self._units = wiring.units
        self._places = _places(net, wiring)
        self._free = _free(self._places, wiring)
        if not bool(self._free.any()):
            raise ValueError(
                f"no unit of this {type(net).__name__} can be left out of a step: conditional computation needs gates at "
                "'units' or 'inputs' that draw one sample per minibatch, and no BatchNorm behind the units"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `net(*args, **kwargs)` returns."""
        gates = self.gates()
        if not self.net.training or all(gate.frozen for gate in gates):
            return self.net(*args, **kwargs)
        return self.run(Inputs(args, kwargs), {gate: gate() for gate in gates}, self.multiple_of)

    def run(self, inputs: Inputs, drawn: dict[StochasticGate, Tensor], multiple_of: int) -> Any:
        open_ = self._open({gate: z.detach() != 0 for gate, z in drawn.items()})
        tensors: dict[str, Tensor] = {}
        shown: dict[StochasticGate, Tensor] = {}
        for place in self._places:  # in order of execution, so a layer's units are settled before anybody reads them
            rows, columns = _rows(place, open_, multiple_of), _index(open_[place.layer.sources])
            tensors |= _selected(place, rows, columns)
            for gate, keep in ((place.inputs, columns), (place.units, rows)):
                if gate is not None:
                    shown[gate] = drawn[gate] if keep is None else drawn[gate].index_select(0, keep)
        with _showing(shown):
            return functional_call(self.net, tensors, inputs.args, dict(inputs.kwargs))

    def gates(self) -> list[StochasticGate]:
        """In the order in which the network draws them, so that it sees the same noise as without this."""
        return [gate for place in self._places for gate in (place.inputs, place.units) if gate is not None]

    def _open(self, drawn: dict[StochasticGate, Tensor]) -> Tensor:
        """Per unit id (one more at the end, for the network's input): is it computed?"""
        found = torch.ones(self._units + 1, dtype=torch.bool)
        read = torch.zeros(self._units + 1, dtype=torch.bool)
        for place in self._places:
            if place.units is not None:
                found[place.layer.labels] = drawn[place.units].cpu()
            columns = place.layer.sources
            read[columns if place.inputs is None else columns[drawn[place.inputs].cpu()]] = True
        return (found & read) | ~self._free


def _check(net: nn.Module, found: Wiring, example: Inputs) -> None:
    """Compare with the whole network once, half of the gates closed, on a copy.

    Raises:
        ValueError: its forward needs its full sizes, or it computes something else.
    """
    judged = Judged.of(net, example)
    part = Conditional(judged.net, found)
    generator = torch.Generator().manual_seed(0)
    drawn = {
        gate: torch.rand(gate.shape, generator=generator).sub(0.5).clamp(min=0).to(gate.log_alpha)
        for gate in part.gates()
    }
    with _showing(drawn):
        whole = judged.outputs()
    try:
        less = outputs(lambda *args, **kwargs: part.run(Inputs(args, kwargs), drawn, 1), judged.example, False)
    except RuntimeError as error:
        raise ValueError(
            f"the forward of this {type(net).__name__} needs its full sizes, so no unit can be left out: {error}"
        ) from error
    if problem := judged.differs(whole, less):
        raise ValueError(f"leaving units out changes what this {type(net).__name__} computes: {problem}")


@contextmanager
def _showing(values: dict[StochasticGate, Tensor]) -> Iterator[None]:
    """Gates show these values for a while."""
    try:
        for gate, value in values.items():
            gate.show(value)
        yield
    finally:
        for gate in values:
            gate.show(None)


def _places(net: nn.Module, wiring: Wiring) -> tuple[_Place, ...]:
    modules = dict(net.named_modules())
    found = []
    for layer in wiring.layers:
        module = modules.get(layer.name) or nn.Identity()  # of what no module of its own computes all is computed
        gates = module.gates() if isinstance(module, Gated) else {}
        units, inputs = (
            gate if isinstance(gate := gates.get(kind), StochasticGate) and not gate.per_example else None
            for kind in ("units", "inputs")
        )
        found.append(_Place(layer, module, units, inputs))
    return tuple(found)


def _free(places: tuple[_Place, ...], wiring: Wiring) -> Tensor:
    """Units that can be left out of a step, (units + 1,): of one plain layer, read by plain layers, behind no norm."""
    free = torch.zeros(wiring.units + 1, dtype=torch.bool)
    plain = [p for p in places if p.layer.groups == 1 and _takes_rows(p.module)]
    for place in plain:
        if place.layer.gateable:
            free[place.layer.labels] = True
    for place in places:
        if place not in plain:
            free[place.layer.sources] = False
            free[place.layer.labels] = False
    for norm in wiring.norms:
        free[norm.labels] = False
    if wiring.fixed is not None:
        free[:-1] &= ~wiring.fixed
    if wiring.mixed is not None:
        free[:-1] &= ~wiring.mixed
    gated = torch.zeros_like(free)
    for place in places:
        if place.units is not None:
            gated[place.layer.labels] = True
        if place.inputs is not None:
            gated[place.layer.sources] = True
    free &= gated
    free[-1] = False
    return free


def _rows(place: _Place, open_: Tensor, multiple_of: int) -> Tensor | None:
    """Units of a layer that are computed, None for all; what the width is rounded up with is marked as open."""
    labels = place.layer.labels
    kept = open_[labels]
    width = multiple_of if place.layer.kind == "conv" else 1
    lacking = -int(kept.sum()) % width if bool(kept.any()) else width
    if lacking:
        open_[labels[~kept][:lacking]] = True
    return _index(open_[labels])


def _takes_rows(module: nn.Module) -> bool:
    kind = gateable(module)
    if kind is None or kind.gated is None or kind.operation not in ("linear", "conv") or kind.own or derived(module):
        return False
    return not (isinstance(module, Gated) and module.weight_gate is not None)


def _index(kept: Tensor) -> Tensor | None:
    return None if bool(kept.all()) else kept.nonzero().flatten()


def _selected(place: _Place, rows: Tensor | None, columns: Tensor | None) -> dict[str, Tensor]:
    """The layer's parameters for this step, by name; nothing when it is computed whole."""
    prefix = f"{place.layer.name}." if place.layer.name else ""
    whole = weight = cast(Tensor, place.module.weight)
    found: dict[str, Tensor] = {}
    if rows is not None:
        weight = weight.index_select(0, rows.to(whole.device))
        bias = cast("Tensor | None", place.module.bias)
        if bias is not None:
            found[f"{prefix}bias"] = bias.index_select(0, rows.to(whole.device))
    if columns is not None:
        weight = weight.index_select(1, columns.to(whole.device))
    if weight is not whole:
        if weight.dim() == 4 and whole.is_contiguous(memory_format=torch.channels_last):
            weight = weight.contiguous(memory_format=torch.channels_last)
        found[f"{prefix}weight"] = weight
    return found
