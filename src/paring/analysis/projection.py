"""Linear maps whose weight is a loose parameter of some module: `in_proj_weight`, a transposed weight in addmm.

They become sites like any layer, with a stand-in `nn.Linear` that shows the weight as (outputs, inputs); `Alias` says
which parameter, and which of its dimensions, a cut of the stand-in means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from paring.analysis import layer_rules
from paring.analysis.labels import spread, uniform
from paring.analysis.parameter_parts import note_parts
from paring.analysis.repeats import once
from paring.analysis.state import Alias, Ref, Site, State, shape_of
from paring.analysis.weights import is_a, some

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter


class Projection(nn.Linear):
    """Stands for a loose weight (and bias): a view of the same numbers, no module of the network."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)  # type: ignore[assignment]


def linear(run: Interpreter, node: fx.Node) -> object:
    """A Linear."""
    part = run.values(node.args[1])
    run.held_back |= _loose(run, node) is not None or (isinstance(part, State) and not bool(part.value.isnan().any()))
    return layer_rules.linear(run, node)


def free_linear(run: Interpreter, node: fx.Node) -> object:
    """A Linear, or a linear map with a weight that no Linear owns."""
    loose = _loose(run, node)
    if loose is not None:
        return linear_site(run, node, node.args[0], *loose, swapped=False)
    return layer_rules.linear(run, node)


def _loose(run: Interpreter, node: fx.Node) -> tuple[Ref, Ref | None] | None:
    """The weight and the bias, where they are parameters that no Linear owns."""
    weight, bias = run.values(node.args[1]), run.values(layer_rules.argument(node, 2, "bias"))
    if not isinstance(weight, Ref) or not (bias is None or isinstance(bias, Ref)):
        return None
    owner = run.net.get_submodule(weight.name.rpartition(".")[0])
    parts = any(held is not None and held.tensor.shape != run.whole(held).shape for held in (weight, bias))
    return None if is_a(owner, "linear") and not parts else (weight, bias)


def linear_site(run: Interpreter, node: fx.Node, given: object, weight: Ref, bias: Ref | None, swapped: bool) -> object:
    """The site of x Wᵀ + b along the last dimension, W (inputs, outputs) when swapped."""
    x = run.states(given)
    held = {arg for arg in node.all_input_nodes if isinstance(run.values(arg), Ref)}
    if not isinstance(x, State) or any(len(arg.users) > 1 for arg in held) or run.tied(weight, bias):
        return run.barrier(node)
    columns = run.lines(x.labels, -1)
    if columns is None:
        return run.barrier(node)
    path, _, leaf = weight.name.rpartition(".")
    stem = leaf.removesuffix("weight").rstrip("_")
    parts = [one for one in (weight, bias) if one is not None and one.tensor.shape != run.whole(one).shape]
    stem = "_".join(part for part in (stem, str(parts[0].start) if parts else "") if part)
    name = ".".join(part for part in (path, stem) if part)
    module = Projection(weight.tensor.T if swapped else weight.tensor, None if bias is None else bias.tensor)
    run.aliases[f"{name}.weight" if name else "weight"] = _alias(run, weight, swapped)
    if bias is not None:
        run.aliases[f"{name}.bias" if name else "bias"] = _alias(run, bias, False)
    shape = shape_of(node.meta["val"])
    units = run.new_units(name, shape[-1])
    for part, given in ((weight, node.args[1]), (bias, layer_rules.argument(node, 2, "bias"))):
        if part is not None and part in parts:
            note_parts(run, part, given, units)
    if weight in parts:  # one column of the parameter is a column of all its parts
        others = run.part_columns.setdefault(weight.name, columns)
        run.couple(others, columns, f"read by parts of '{weight.name}'")
    value = _constants(x.value, module)
    constants = uniform(x.value, -1)
    if bias is None:  # nowhere to fold a constant
        constants = torch.where(constants == 0, constants, torch.nan)
    positions = run.per_example(node, torch.Size(shape[:-1]).numel())
    run.sites.append(
        Site(
            name,
            "linear",
            module,
            node,
            units,
            columns,
            constants,
            uniform(value, -1),
            False,
            positions,
            True,
            behind=None if bias is None else layer_rules.behind_norm(run, node, x, columns),
        )
    )
    return State(spread(units, shape, len(shape) - 1), value.expand(shape))


def _alias(run: Interpreter, held: Ref, swapped: bool) -> Alias:
    whole = run.whole(held)
    return Alias(held.name, swapped, held.start, 0 if whole.shape == held.tensor.shape else len(whole))


def _constants(x: Tensor, module: Projection) -> Tensor:
    """The result where it is constant: units without a weight on a dynamic input; NaN elsewhere. Alike rows come once."""
    x = once(x, x.dim() - 1)
    weight = module.weight.detach().cpu()
    out = torch.full((*x.shape[:-1], len(weight)), torch.nan, dtype=torch.float64)
    dynamic, reads = x.flatten(0, -2).isnan().any(0), weight.bool()
    rows = (~some(reads if bool(dynamic.all()) else reads[:, dynamic], 1)).nonzero().flatten()
    if len(rows):
        bias = None if module.bias is None else module.bias.detach().to("cpu", torch.float64)[rows]
        out[..., rows] = F.linear(x.nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf), weight[rows].double(), bias)
    return out
