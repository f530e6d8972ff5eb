"""Rules for operations with one parameter per channel: norms and PReLU.

BatchNorm in eval: β + γ (c - μ)/√(σ² + ε), and β where γ = 0. In train mode an identically constant channel equals its
batch mean, so it comes out as β; so it does from an InstanceNorm without running statistics. A GroupNorm mixes the
channels of a group: they live or go together, and come out as constants when all of them come in as constants, or where
γ = 0. A norm that is in eval mode while its network is in train mode (frozen) is one in eval mode. LayerNorm and RMSNorm
mix all features: those that are always zero may go (see `feature_norms`), and whole heads, each normalised for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from paring.analysis.feature_norms import note
from paring.analysis.labels import spread, uniform
from paring.analysis.layer_rules import argument, own
from paring.analysis.repeats import filled, once
from paring.analysis.slicewise import slicewise
from paring.analysis.state import NormSite, State, module_path, place
from paring.analysis.weights import is_a

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter

_AFFINE = ("weight", "bias")
_RUNNING = (*_AFFINE, "running_mean", "running_var")


def batch_norm(run: Interpreter, node: fx.Node) -> object:
    """BatchNorm over dimension 1."""
    return _channel_norm(run, node, "batch_norm")


def instance_norm(run: Interpreter, node: fx.Node) -> object:
    """InstanceNorm over dimension 1, with running statistics or without; the function alone is tried."""
    if not any(node.args[1:5]) and not is_a(run.net.get_submodule(module_path(node)), "instance_norm"):
        return slicewise(run, node)
    return _channel_norm(run, node, "instance_norm")


def _channel_norm(run: Interpreter, node: fx.Node, operation: str) -> object:
    x = run.states(node.args[0])
    held = [run.values(a) for a in node.args[1:5]]
    labels = _site(run, node, x, operation, dict(zip(_RUNNING, held, strict=True)))
    if labels is None or not isinstance(x, State):
        return run.barrier(node)
    shape, channels = tuple(x.value.shape), x.value.shape[1]
    gamma, beta, mean, variance = (
        _vector(run, a, channels, default) for a, default in zip(node.args[1:5], (1.0, 0.0, 0.0, 1.0), strict=True)
    )
    frozen = run.net.training and not run.net.get_submodule(module_path(node)).training
    if (run.training and not frozen) or held[2] is None or held[3] is None:
        constant = torch.where((gamma == 0) | ~uniform(x.value, 1).isnan(), beta, torch.full_like(beta, torch.nan))
        return State(x.labels, spread(constant, shape, 1))
    scale = gamma / (variance + float(node.args[7])).sqrt()  # type: ignore[arg-type]
    lie = [1, -1, *[1] * (len(shape) - 2)]
    value = (once(x.value) - mean.view(lie)).mul_(scale.view(lie)).masked_fill_((scale == 0).view(lie), 0.0)
    return State(x.labels, value.add_(beta.view(lie)).expand(shape))


def group_norm(run: Interpreter, node: fx.Node) -> object:
    """GroupNorm over dimension 1: the channels of a group are coupled, so that only whole groups go."""
    x = run.states(node.args[0])
    groups = run.values(node.args[1])
    weight, bias = argument(node, 2, "weight"), argument(node, 3, "bias")
    held = dict(zip(_AFFINE, (run.values(weight), run.values(bias)), strict=True))
    labels = (
        _site(run, node, x, "group_norm", held) if held["weight"] is not None else None
    )  # its size says how many go
    if labels is None or not isinstance(x, State):
        return run.barrier(node)
    rows = labels.view(groups, -1)
    run.couple(rows[:, :1].expand_as(rows), rows, "coupled by a group norm")
    shape, channels = tuple(x.value.shape), x.value.shape[1]
    eps = _eps(argument(node, 4, "eps"), 1e-5)
    gathered = x.value.reshape(shape[0], groups, -1)
    value = F.layer_norm(gathered, gathered.shape[2:], eps=eps)
    value = value.masked_fill(_flat(gathered), 0.0).view(shape)
    gamma, beta = _vector(run, weight, channels, 1.0), _vector(run, bias, channels, 0.0)
    return State(x.labels, _affine(value, spread(gamma, shape, 1), spread(beta, shape, 1)))


def layer_norm(run: Interpreter, node: fx.Node) -> object:
    """LayerNorm over the last dimensions: keeps units along them that are not zero, or what is whole beside them (heads)."""
    x, over = run.states(node.args[0]), list(run.values(node.args[1]))
    if not isinstance(x, State):
        return run.barrier(node)
    eps = _eps(argument(node, 4, "eps"), 1e-5)
    weight, bias = run.values(argument(node, 2, "weight")), run.values(argument(node, 3, "bias"))
    if len(over) != 1 or not note(run, node, x, weight, bias, eps):
        run.pin(x.labels, _last(x, over), f"read by layer_norm in {place(node)}")
    rows = _rows(x, over)
    value = F.layer_norm(rows, over, eps=eps)
    flat = _flat(rows.flatten(-len(over)))
    value = value.masked_fill(flat.view(*rows.shape[: -len(over)], *[1] * len(over)), 0.0)
    return State(x.labels, _scaled(run, node, value).expand(x.value.shape))


def rms_norm(run: Interpreter, node: fx.Node) -> object:
    """RMSNorm over the last dimensions: keeps units along them that are not zero, or what is whole beside them (heads)."""
    x, over = run.states(node.args[0]), list(run.values(node.args[1]))
    if not isinstance(x, State):
        return run.barrier(node)
    dtype = node.args[0].meta["val"].dtype  # type: ignore[union-attr]
    eps = _eps(argument(node, 3, "eps"), torch.finfo(dtype).eps)
    if len(over) != 1 or not note(run, node, x, run.values(argument(node, 2, "weight")), None, eps):
        run.pin(x.labels, _last(x, over), f"read by rms_norm in {place(node)}")
    rows = _rows(x, over)
    squares = rows.square().flatten(-len(over)).mean(-1) + eps
    value = (rows / squares.sqrt().view(*squares.shape, *[1] * len(over))).masked_fill(rows == 0, 0.0)
    return State(x.labels, _scaled(run, node, value, bias=False).expand(x.value.shape))


def prelu(run: Interpreter, node: fx.Node) -> object:
    """max(0, x) + a min(0, x), with one slope for all, or one per channel (dimension 1) that goes with its channel."""
    x, slope = run.states(node.args[0]), run.states(node.args[1])
    if not isinstance(x, State) or not isinstance(slope, State):
        return run.barrier(node)
    if slope.value.numel() > 1:
        labels = _site(run, node, x, "prelu", {"weight": run.values(node.args[1])})
        if labels is None:
            return run.barrier(node)
    value = F.prelu(x.value, slope.value) if not slope.value.isnan().any() else filled(x.value.shape, torch.nan)
    return State(x.labels, value.masked_fill(x.value.isnan(), torch.nan).masked_fill(x.value == 0, 0.0))


def _site(run: Interpreter, node: fx.Node, x: object, operation: str, held: dict[str, object]) -> Tensor | None:
    """Note a call of a module with parameters per channel; the labels along dimension 1, None if it is not understood."""
    path = module_path(node)
    module = run.net.get_submodule(path)
    if not isinstance(x, State) or not is_a(module, operation) or x.labels.dim() < 2:
        return None
    if not all(value is None or own(module, leaf, value) for leaf, value in held.items()):
        return None
    labels = run.lines(x.labels, 1)
    if labels is not None:
        (run.slopes if operation == "prelu" else run.norms).append(NormSite(path, module, node, labels))
    return labels


def _scaled(run: Interpreter, node: fx.Node, value: Tensor, bias: bool = True) -> Tensor:
    """A normalised value times the weight (argument 2) plus the bias (argument 3) of its features."""
    gamma, beta = argument(node, 2, "weight"), argument(node, 3, "bias") if bias else None
    operands = []
    for held, default in ((gamma, 1.0), (beta, 0.0)):
        state = run.states(held)
        if isinstance(state, State):
            run.keep(state.labels, f"read as a parameter of a norm in {place(node)}")
        operands.append(state.value if isinstance(state, State) else torch.tensor(default, dtype=torch.float64))
    return _affine(value, operands[0], operands[1])


def _affine(value: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """γ value + β, and β where γ = 0, whatever the value."""
    return (value * gamma).masked_fill((gamma == 0).expand_as(value), 0.0) + beta


def _last(x: State, over: list[int]) -> set[int]:
    """The dimensions that a norm over the last ones mixes."""
    return set(range(x.value.dim() - len(over), x.value.dim()))


def _rows(x: State, over: list[int]) -> Tensor:
    """The values that a norm over the last dimensions mixes, those of alike rows once."""
    last = x.value.dim() - len(over)
    return once(x.value, *range(last, x.value.dim()))


def _flat(rows: Tensor) -> Tensor:
    """Rows along the last dimension that hold one number only, where rounding would be divided by √ε."""
    return (rows == rows[..., :1]).all(-1, keepdim=True)


def _eps(held: object, default: float) -> float:
    return float(held) if isinstance(held, int | float) else default


def _vector(run: Interpreter, held: object, size: int, default: float) -> Tensor:
    state = run.states(held)
    return state.value if isinstance(state, State) else torch.full((size,), default, dtype=torch.float64)
