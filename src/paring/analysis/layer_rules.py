"""Rules for the layers: Linear, convolution (with groups, transposed), embedding.

Constant units. Let x be the known inputs (0 where dynamic). Unit u is constant iff W[u, j] = 0 for every dynamic input
j that it reads; its value is then the layer applied to x, position by position.

In a convolution with groups whole groups go, and of those that live what they give as far as all keep as much, and what they
read as far as it is at the same places in all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from paring.analysis.feature_norms import behind
from paring.analysis.grids import Grid, SliceTie
from paring.analysis.labels import spread, uniform
from paring.analysis.loose import shrinks
from paring.analysis.repeats import filled, once
from paring.analysis.state import COMPUTED, FeatureNorm, Ref, Site, State, module_path, place, shape_of
from paring.analysis.weights import dims, groups_of, is_a, some, used, weight_of

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter

Compute = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def linear(run: Interpreter, node: fx.Node) -> object:
    """Y = x Wᵀ + b along the last dimension."""
    return _layer(run, node, "linear", -1)


def conv(run: Interpreter, node: fx.Node) -> object:
    """A convolution; channels are the dimension before the spatial ones."""
    weight = shape_of(node.args[1].meta["val"])  # type: ignore[union-attr]
    return _layer(run, node, "conv", 1 - len(weight))


def conv_transpose(run: Interpreter, node: fx.Node) -> object:
    """A transposed convolution. Unless it is pointwise, a constant input meets other taps at other positions."""
    weight = shape_of(node.args[1].meta["val"])  # type: ignore[union-attr]
    return _layer(run, node, "conv_transpose", 1 - len(weight))


def matrix(run: Interpreter, node: fx.Node, given: object, weight: object, bias: object) -> object:
    """Y = x W + b with a weight (inputs, outputs) that is a layer's own; None where it is no such layer's."""
    held = run.values(weight)
    found = _owner(run, node, held, "addmm") if isinstance(held, Ref) else None
    x = run.states(given)
    if found is None or not isinstance(x, State):
        return None
    return _site(run, node, "linear", -1, found, x, held, run.values(bias), lambda x, w, b: F.linear(x, w.T, b))


def _layer(run: Interpreter, node: fx.Node, kind: str, dim: int) -> object:
    x, bias = run.states(node.args[0]), run.values(argument(node, 2, "bias"))
    weight = run.values(node.args[1])
    found = _owner(run, node, weight, kind)
    if found is None or not isinstance(x, State):
        return run.barrier(node)

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rest, kwargs = run.values((node.args[3:], node.kwargs))
        kwargs = {key: v for key, v in kwargs.items() if key != "bias"}
        result: Tensor = node.target(x, weight, bias, *rest, **kwargs)  # type: ignore[operator]
        return result

    if isinstance(bias, State) and kind == "linear" and getattr(found[1], "bias", None) is None:
        return _shifted(run, node, _site(run, node, kind, dim, found, x, weight, None, compute), bias)
    return _site(run, node, kind, dim, found, x, weight, bias, compute)


def _shifted(run: Interpreter, node: fx.Node, made: State, bias: State) -> State:
    """What a linear layer without a bias gives, and a bias that its caller makes of parameters of its own."""
    if not shrinks(run, node, bias, made.labels):
        run.keep(made.labels, f"meets a bias that cannot shrink in {place(node)}")
    value = made.value + bias.value
    run.sites[-1].value = uniform(value, -1)
    return State(made.labels, value)


def _site(
    run: Interpreter,
    node: fx.Node,
    kind: str,
    dim: int,
    found: tuple[str, nn.Module],
    x: State,
    weight: object,
    bias: object,
    compute: Compute,
) -> State:
    name, module = found
    plain = own(module, "weight", weight) and own(module, "bias", bias)
    shape = shape_of(node.meta["val"])
    groups = groups_of(module)
    count, inputs = shape[dim], x.value.shape[dim]
    padded = kind != "linear" and _padded(run, node, kind)
    alike = kind == "linear" or (kind == "conv" and not padded and all(n == 1 for n in weight_of(module).shape[2:]))
    units, columns = run.new_units(name, count), run.lines(x.labels, dim)
    if columns is None:
        run.keep(x.labels, f"read by '{name}' across several dimensions")
        columns = torch.full((inputs,), -1)
    if groups > 1:
        _couple_groups(run, units, columns, groups, whole=not run.finer or dims(module)[0] != 0)
    value = filled(shape, torch.nan)
    if not plain:
        run.keep(columns, f"read by '{name}', whose weight is computed in the forward")
        run.keep(units, COMPUTED)
    else:
        value = _constants(x.value, shape, dim, module, alike, compute)
    constants = uniform(x.value, dim)
    if bias is None and (is_a(module, "addmm") or module_path(node) != name):  # nowhere to fold a constant
        constants = torch.where(constants == 0, constants, torch.nan)
    counted = x.value if kind == "conv_transpose" else value  # every input position meets the whole kernel there
    run.sites.append(
        Site(
            name=name,
            kind=kind,
            module=module,
            node=node,
            units=units,
            columns=columns,
            constants=constants,
            value=uniform(value, dim),
            padded=padded,
            positions=run.per_example(node, counted.numel() // counted.shape[dim]),
            plain=plain,
            written=run.per_example(node, value.numel() // shape[dim]),
            behind=behind_norm(run, node, x, columns) if kind == "linear" and plain else None,
        )
    )
    return State(spread(units, shape, dim % len(shape)), value)


def behind_norm(run: Interpreter, node: fx.Node, x: State, columns: Tensor) -> FeatureNorm | None:
    """The LayerNorm that a linear layer reads, if nothing is computed between; columns: the units of x."""
    source = next((arg for arg in node.all_input_nodes if run.values(arg) is x), None)
    return None if source is None else behind(run, source, columns)


def _couple_groups(run: Interpreter, units: Tensor, columns: Tensor, groups: int, *, whole: bool) -> None:
    """Whole groups go, or where that is not all: as much of what every group gives, and the same places of what it reads."""
    ins, outs = columns.view(groups, -1), units.view(groups, -1)
    single = ins.shape[1] == outs.shape[1] == 1
    reason = "coupled by a depthwise convolution" if single else "coupled by a grouped convolution: whole groups go"
    if whole or single:
        head = outs[:, :1]
        run.couple(head.expand_as(ins), ins, reason)
        run.couple(head.expand_as(outs), outs, reason)
        return
    run.grids += [Grid(outs), Grid(ins, regular=True)]
    run.slice_ties.append(SliceTie((ins, outs)))


def _constants(x: Tensor, shape: tuple[int, ...], dim: int, module: nn.Module, alike: bool, compute: Compute) -> Tensor:
    """The result where it is constant; NaN elsewhere. alike: positions with the same input have the same result."""
    bias, at = getattr(module, "bias", None), dim % x.dim()
    others = [d for d in range(x.dim()) if d != at]
    x = once(x, *range(at, at + 1 if alike else x.dim()))  # examples, and positions that all give the same
    dynamic = x.isnan()
    columns, reads = dynamic.any(others), used(module)
    moving = some(reads if bool(columns.all()) else reads[:, columns], 1)
    rows = (~moving).nonzero().flatten()
    if len(rows) == 0:
        return filled(shape, torch.nan)
    shift = bias.detach().cpu().double() if isinstance(bias, Tensor) else None
    live = ((x != 0) & ~dynamic).any(others).nonzero().flatten()
    if len(live):
        weight, (unit, column) = weight_of(module), dims(module)
        if alone := groups_of(module) == 1:  # only what matters: the other channels are zero or not asked for
            weight, x = weight.index_select(unit, rows).index_select(column, live), x.index_select(at, live)
            shift = None if shift is None else shift[rows]
        known = x.nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf)
        values = compute(known, weight.double(), shift)
        values = values if alone else values.index_select(at, rows)
    else:
        shift = torch.zeros(len(rows), dtype=torch.float64) if shift is None else shift[rows]
        values = shift.view(-1, *[1] * (x.dim() - 1 - at))
    size = [1] * (len(shape) - values.dim()) + list(values.shape)
    size[dim] = shape[dim]
    out = torch.full(size, torch.nan, dtype=torch.float64)
    return out.index_copy_(
        dim % len(shape), rows, values.expand(*size[:dim], len(rows), *size[len(size) + dim + 1 :])
    ).expand(shape)


def _padded(run: Interpreter, node: fx.Node, kind: str) -> bool:
    """May the same constant on a whole input channel come out differently at different positions?"""
    kernel = shape_of(node.args[1].meta["val"])[2:]  # type: ignore[union-attr]
    padding = run.values(argument(node, 4, "padding"))
    if kind == "conv_transpose":
        stride, beyond = run.values((argument(node, 3, "stride"), argument(node, 5, "output_padding")))
        return any(n != 1 for n in (*kernel, *_listed(stride))) or any((*_listed(padding), *_listed(beyond)))
    if isinstance(padding, str):
        return padding != "valid" and any(k > 1 for k in kernel)
    return any(_listed(padding))


def _listed(sizes: object) -> list[int]:
    """One size for all dimensions, or one for each; none where torch's default stands."""
    return list(sizes) if isinstance(sizes, list | tuple) else [] if sizes is None else [int(str(sizes))]


def embedding(run: Interpreter, node: fx.Node) -> object:
    """Rows of a table; feature j is constant when the whole column j of the table is."""
    table = run.values(node.args[0])
    found = _owner(run, node, table, "embedding")
    if found is None:
        return run.barrier(node)
    name, module = found
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows = weight.detach().cpu().double()
    constants = torch.where((rows == rows[:1]).all(0), rows[0], torch.full_like(rows[0], torch.nan))
    plain = own(module, "weight", table)
    shape = shape_of(node.meta["val"])
    units = run.new_units(name, shape[-1])
    if not plain:
        constants = torch.full_like(constants, torch.nan)
        run.keep(units, COMPUTED)
    none = torch.zeros(0, dtype=torch.int64)
    positions = run.per_example(node, torch.Size(shape).numel() // shape[-1])
    run.sites.append(
        Site(name, "embedding", module, node, units, none, none.double(), constants, False, positions, plain)
    )
    last = len(shape) - 1
    return State(spread(units, shape, last), spread(constants, shape, last))


def argument(node: fx.Node, index: int, name: str) -> object:
    """The argument of a call at this position or under this name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def own(module: nn.Module, leaf: str, held: object) -> bool:
    """Is this value the module's own parameter or buffer (None if it has none)?"""
    mine = getattr(module, leaf, None)
    return mine is None if held is None else isinstance(held, Ref) and held.tensor is mine


def _owner(run: Interpreter, node: fx.Node, weight: object, operation: str) -> tuple[str, nn.Module] | None:
    """The layer that a call belongs to: the module it was traced in, else the one that holds the weight."""
    paths = [module_path(node)]
    if isinstance(weight, Ref):
        paths.append(weight.name.rpartition(".")[0])
    for path in paths:
        module = run.net.get_submodule(path)
        if is_a(module, operation) and (not isinstance(weight, Ref) or own(module, "weight", weight)):
            return path, module
    return None
