"""One cut for everything that has the shape of a parameter: the parameter, its gradient, optimizer state, averages.

A `Parameter` keeps its identity: its data is exchanged, so that optimizers, schedulers, averages and hooks that hold it
stay right. Tensors keep their order of strides (channels-last stays channels-last).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from paring.core import Gate, Gated, PlaceKind, gated_layers, is_sharded, kind_of
from paring.core.shared_gate import SharedGate
from paring.removal.apply import resize
from paring.removal.plan import full_name
from paring.removal.slices import Dims, cut
from paring.run.distributed.wrappers import fixed_wrappers
from paring.run.surgery.gated_select import set_reads
from paring.run.surgery.optimizer_memory import is_number


@dataclass(frozen=True)
class Cuts:
    """What stays of a network.

    Attributes:
        kept: name of a parameter or buffer, gates' included -> dimension -> indices that stay (sorted int64, CPU).
        reads: linear layer -> columns of its new input that it reads; None reads all of them.
        sizes: norm without any tensor of its own -> features that it is left with.
    """

    kept: dict[str, Dims] = field(default_factory=dict)
    reads: dict[str, Tensor | None] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.kept)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Cut a tensor of the shape that `name` had."""
        return cut(tensor, self.kept.get(name, {}))


@runtime_checkable
class Carried(Protocol):
    """Something that keeps tensors of the network's shapes under the network's names."""

    def shrink(self, cut: Callable[[str, Tensor], Tensor]) -> None:
        """Replace each of these tensors by `cut(name, tensor)`: a part of it, or it times what the weights are folded with."""


def cut_network(net: nn.Module, cuts: Cuts) -> None:
    """Cut parameters, their gradients, buffers and gates of `net`, in place, and set the layers' sizes."""
    parameters = dict(net.named_parameters(remove_duplicate=False))
    done: set[int] = set()
    notes = [
        (gate, gate.shape, dims)
        for path, layer in gated_layers(net)
        for kind, leaf, gate in layer.held()
        if (dims := gate_dims(layer, kind, cuts.kept.get(full_name(path, leaf or "weight"), {})))
    ]
    for path, part in _shared_parts(net):
        if dims := next((cuts.kept[name] for name in tensors_of(path, part, {}) if name in cuts.kept), {}):
            notes.append((part, part.shape, dims))
    for name, dims in cuts.kept.items():
        path, _, leaf = name.rpartition(".")
        module = net.get_submodule(path)
        if name not in parameters:
            setattr(module, leaf, cut(getattr(module, leaf), dims))
        elif id(parameters[name]) not in done:
            done.add(id(parameters[name]))
            _exchange(parameters[name], dims)
        resize(module)
    for gate, before, dims in notes:
        gate.note_cut(before, {d: keep.to(_device(net)) for d, keep in dims.items()})
    for name, reads in cuts.reads.items():
        set_reads(net.get_submodule(name), reads)
    for name, size in cuts.sizes.items():
        net.get_submodule(name).num_features = size  # type: ignore[assignment]


def _shared_parts(net: nn.Module) -> list[tuple[str, Gate]]:
    """(path, gate) for every gate that several modules hold."""
    parts = {id(part) for m in net.modules() if isinstance(m, SharedGate) for part in m.gates()}
    return [(path, m) for path, m in net.named_modules() if isinstance(m, Gate) and id(m) in parts]


def shared_cuts(net: nn.Module, kept: Mapping[str, Dims]) -> dict[str, Dims]:
    """How gates that several modules hold are cut along: entries that acted somewhere and act nowhere any more go.

    Args:
        net: the network before the cut.
        kept: how its weights are cut.
    """
    before: dict[int, list[Tensor]] = {}
    after: dict[int, list[Tensor]] = {}
    for path, layer in gated_layers(net):
        for kind, spread in layer.gates().items():
            if not isinstance(spread, SharedGate):
                continue
            rows = gate_dims(layer, kind, kept.get(full_name(path, "weight"), {})).get(0)
            index = spread.index.cpu()
            start = 0
            for part in spread.gates():
                end = start + part.dense_shape[0]
                for found, left in ((before, index), (after, index if rows is None else index[rows])):
                    found.setdefault(id(part), []).append(left[(left >= start) & (left < end)] - start)
                start = end
    cuts: dict[str, Dims] = {}
    for path, part in _shared_parts(net):
        gone = torch.cat(before[id(part)])
        gone = gone[~torch.isin(gone, torch.cat(after[id(part)]))]
        stays = ~torch.isin(part.part(torch.arange(part.dense_shape[0])), gone)
        if not bool(stays.all()):
            cuts |= tensors_of(path, part, {0: stays.nonzero().flatten()})
    return cuts


def tensors_of(path: str, gate: Gate, dims: Dims) -> dict[str, Dims]:
    """The cut of every tensor that has the gate's shape, by name."""
    own = (*gate.named_parameters(recurse=False), *gate.named_buffers(recurse=False))
    return {full_name(path, leaf): dims for leaf, t in own if t.shape == gate.shape and not leaf.startswith("kept_")}


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _exchange(parameter: nn.Parameter, dims: Dims) -> None:
    """Give a parameter and its gradient their smaller values.

    A graph that is still alive holds the parameter's gradient accumulator, which remembers the old shape; data of
    another type in between makes autograd forget it.
    """
    small, gradient = cut(parameter.data, dims), parameter.grad
    parameter.grad = None
    other = torch.float32 if parameter.dtype != torch.float32 else torch.float64
    parameter.data = torch.empty(0, dtype=other, device=parameter.device)
    parameter.data = small
    if gradient is not None:
        parameter.grad = cut(gradient, dims)


def shapes_of(net: nn.Module) -> dict[str, torch.Size]:
    """Shapes of all parameters by name."""
    return {name: parameter.shape for name, parameter in net.named_parameters()}


def cut_state(
    opt: torch.optim.Optimizer, shapes: Mapping[nn.Parameter, torch.Size], of: Mapping[nn.Parameter, Dims]
) -> list[tuple[dict[str, Any], str, Tensor]]:
    """The state that belongs to these parameters, cut: (state of a parameter, key, new tensor). Nothing is changed yet.

    `check_memory` comes first: state is tensors as large as the parameter, or of size 1 along what they are a mean over.
    """
    found: list[tuple[dict[str, Any], str, Tensor]] = []
    for parameter, dims in of.items():
        state, shape = opt.state.get(parameter, {}), shapes[parameter]
        for key, value in state.items():
            if not isinstance(value, Tensor) or is_number(value, shape):
                continue
            present = {d: keep for d, keep in dims.items() if value.shape[d] == shape[d]}
            small = cut(value, present)
            if isinstance(opt, torch.optim.Adafactor):  # a mean over what was cut: keep the sum, what goes adds nothing
                for d in dims.keys() - present.keys():
                    small = small * (shape[d] / len(dims[d]))
            found.append((state, key, small))
    return found


def check_network(net: nn.Module) -> None:
    """Refuse networks that are spread over processes in a way that a cut would break.

    Raises:
        RuntimeError: sharded parameters, or a DistributedDataParallel around the network that `Run.parallel` did not
            make: after a cut it would silently stop averaging gradients.
    """
    if is_sharded(net):
        raise RuntimeError(
            f"the parameters of this {type(net).__name__} are sharded over processes and cannot be cut while training. "
            "Leave Shrink out; finish() gathers the network after training, and the small one can be sharded again"
        )
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    if any(True for _ in fixed_wrappers(net)):
        raise RuntimeError(
            "this network is wrapped in DistributedDataParallel, which would silently stop averaging gradients once the "
            "network shrinks. Let the run make the wrapper, so that it can make it anew: "
            "ddp = run.parallel(lambda net: DistributedDataParallel(net)), and call ddp(x)"
        )


def gate_dims(layer: Gated, kind: PlaceKind, dims: Dims) -> Dims:
    """How a gate is cut when the layer's weight is cut like this."""
    if kind == "weights":
        return dict(dims)
    if kind == "blocks":
        return {}
    known = kind_of(layer)
    assert known is not None
    unit, column = known.unit_dim, known.column_dim
    if kind == "units":
        return {0: dims[unit]} if unit in dims else {}
    groups = known.groups_in(layer)
    if groups == 1:
        return {} if column is None or column not in dims else {0: dims[column]}
    if unit not in dims:
        return {}
    left = (dims[unit] // (known.shape(layer, "units")[0] // groups)).unique()  # whole groups go
    each = known.shape(layer, "inputs")[0] // groups
    return {0: (left[:, None] * each + torch.arange(each)).flatten()}
