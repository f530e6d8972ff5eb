"""Rules for the operations with parameters: Linear, convolution, embedding, BatchNorm.

Constant units. Let x be the known inputs (0 where dynamic). Unit u is constant iff W[u, j] = 0 for every dynamic input
j; its value is then the layer applied to x, position by position. BatchNorm in eval: β + γ (c − μ)/√(σ² + ε), and β
where γ = 0. In train mode an identically constant channel equals its batch mean, so it comes out as β.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from paring.graph.labels import along, spread, uniform
from paring.graph.state import NormSite, Ref, Site, State, module_path, shape_of

if TYPE_CHECKING:
    from paring.graph.interpret import Interpreter

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def linear(run: Interpreter, node: fx.Node) -> object:
    """y = x Wᵀ + b along the last dimension."""
    return _layer(run, node, "linear", (nn.Linear,), -1)


def conv(run: Interpreter, node: fx.Node) -> object:
    """A convolution; channels are the dimension before the spatial ones."""
    weight = shape_of(node.args[1].meta["val"])  # type: ignore[union-attr]
    return _layer(run, node, "conv", _CONVS, 1 - len(weight))


def _layer(run: Interpreter, node: fx.Node, kind: str, classes: tuple[type[nn.Module], ...], dim: int) -> object:
    x, bias = run.states(node.args[0]), run.values(_argument(node, 2, "bias"))
    weight = run.values(node.args[1])
    found = _owner(run, node, weight, classes)
    if found is None or not isinstance(x, State):
        return run.barrier(node)
    name, module = found
    plain = _own(module, "weight", weight) and _own(module, "bias", bias)
    shape = shape_of(node.meta["val"])
    groups = getattr(module, "groups", 1)
    count, inputs = shape[dim], x.value.shape[dim]
    units, columns = run.new_units(name, count), along(x.labels, dim)
    if columns is None:
        run.keep(x.labels, f"read by '{name}' across several dimensions")
        columns = torch.full((inputs,), -1)
    if groups > 1:
        run.keep(columns, f"read by the grouped convolution '{name}'")
        run.keep(units, "grouped convolution")
    value = torch.full(shape, torch.nan, dtype=torch.float64)
    if not plain:
        run.keep(columns, f"read by '{name}', whose weight is computed in the forward")
        run.keep(units, "its weight is computed in the forward")
    elif groups == 1:
        _constants(run, node, x.value, value, dim, module)
    run.sites.append(
        Site(
            name=name,
            kind=kind,
            module=module,
            node=node,
            units=units,
            columns=columns,
            constants=uniform(x.value, dim),
            value=uniform(value, dim),
            padded=kind == "conv" and _padded(run, node, module),
            positions=max(1, value.numel() // count // run.captured.batch),
            plain=plain,
        )
    )
    return State(spread(units, shape, dim % len(shape)), value)


def _constants(run: Interpreter, node: fx.Node, x: Tensor, out: Tensor, dim: int, module: nn.Module) -> None:
    """Write the values of constant units into `out`."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    weight = weight.detach().cpu()
    dynamic = x.movedim(dim, 0).flatten(1).isnan().any(1)
    constant = ~((weight != 0).flatten(2).any(2) if weight.dim() > 2 else weight != 0)[:, dynamic].any(1)
    rows = constant.nonzero().flatten()
    if len(rows) == 0:
        return
    shift = bias.detach().cpu().double()[rows] if isinstance(bias, Tensor) else None
    filled = x.nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf)
    if bool((filled != 0).any()):
        rest, kwargs = run.values((node.args[3:], node.kwargs))
        kwargs = {key: v for key, v in kwargs.items() if key != "bias"}
        values = node.target(filled, weight[rows].double(), shift, *rest, **kwargs)  # type: ignore[operator]
    else:
        size = list(out.shape)
        size[dim] = len(rows)
        shift = torch.zeros(len(rows), dtype=torch.float64) if shift is None else shift
        values = spread(shift, tuple(size), dim % len(size))
    out.index_copy_(dim % out.dim(), rows, values)


def _padded(run: Interpreter, node: fx.Node, module: nn.Module) -> bool:
    padding = run.values(_argument(node, 4, "padding"))
    if isinstance(padding, str):
        return padding != "valid" and any(k > 1 for k in module.kernel_size)  # type: ignore[union-attr]
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def embedding(run: Interpreter, node: fx.Node) -> object:
    """Rows of a table; feature j is constant when the whole column j of the table is."""
    table = run.values(node.args[0])
    found = _owner(run, node, table, (nn.Embedding,))
    if found is None:
        return run.barrier(node)
    name, module = found
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows = weight.detach().cpu().double()
    constants = torch.where((rows == rows[:1]).all(0), rows[0], torch.full_like(rows[0], torch.nan))
    plain = _own(module, "weight", table)
    shape = shape_of(node.meta["val"])
    units = run.new_units(name, shape[-1])
    if not plain:
        constants = torch.full_like(constants, torch.nan)
        run.keep(units, "its weight is computed in the forward")
    none = torch.zeros(0, dtype=torch.int64)
    positions = max(1, torch.Size(shape).numel() // shape[-1] // run.captured.batch)
    run.sites.append(
        Site(name, "embedding", module, node, units, none, none.double(), constants, False, positions, plain)
    )
    last = len(shape) - 1
    return State(spread(units, shape, last), spread(constants, shape, last))


def batch_norm(run: Interpreter, node: fx.Node) -> object:
    """BatchNorm over dimension 1."""
    x = run.states(node.args[0])
    weight, bias, mean, variance = (run.values(a) for a in node.args[1:5])
    path = module_path(node)
    module = run.net.get_submodule(path)
    own = [("weight", weight), ("bias", bias), ("running_mean", mean), ("running_var", variance)]
    if (
        not isinstance(x, State)
        or not isinstance(module, nn.modules.batchnorm._BatchNorm)
        or not all(held is None or _own(module, leaf, held) for leaf, held in own)
        or (labels := along(x.labels, 1)) is None
    ):
        return run.barrier(node)
    run.norms.append(NormSite(path, module, node, labels))
    shape, channels = tuple(x.value.shape), x.value.shape[1]
    gamma = _vector(weight, channels, 1.0)
    beta = _vector(bias, channels, 0.0)
    if run.training or mean is None or variance is None:
        constant = torch.where((gamma == 0) | ~uniform(x.value, 1).isnan(), beta, torch.full_like(beta, torch.nan))
        return State(x.labels.clone(), spread(constant, shape, 1))
    scale = gamma / (_vector(variance, channels, 1.0) + float(node.args[7])).sqrt()  # type: ignore[arg-type]
    centred = x.value - spread(_vector(mean, channels, 0.0), shape, 1)
    value = (centred * spread(scale, shape, 1)).masked_fill(spread(scale == 0, shape, 1), 0.0)
    return State(x.labels.clone(), value + spread(beta, shape, 1))


def _vector(held: object, size: int, default: float) -> Tensor:
    if isinstance(held, Ref):
        return held.tensor.detach().to("cpu", torch.float64)
    return torch.full((size,), default, dtype=torch.float64)


def _argument(node: fx.Node, index: int, name: str) -> object:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def _own(module: nn.Module, leaf: str, held: object) -> bool:
    """Is this value the module's own parameter or buffer (None if it has none)?"""
    mine = getattr(module, leaf, None)
    return mine is None if held is None else isinstance(held, Ref) and held.tensor is mine


def _owner(
    run: Interpreter, node: fx.Node, weight: object, classes: tuple[type[nn.Module], ...]
) -> tuple[str, nn.Module] | None:
    """The layer that a call belongs to: the module it was traced in, else the one that holds the weight."""
    paths = [module_path(node)]
    if isinstance(weight, Ref):
        paths.append(weight.name.rpartition(".")[0])
    for path in paths:
        module = run.net.get_submodule(path)
        if isinstance(module, classes) and (not isinstance(weight, Ref) or _own(module, "weight", weight)):
            return path, module
    return None
