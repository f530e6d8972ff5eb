"""LayerNorm and RMSNorm over units: which of them may go although the norm reads them all.

A unit that is always zero in front of an RMSNorm is zero behind it. The norm of the n others of d is the same with √(d/n) of
the scale and ε d/n: x / √(Σx²/d + ε) = √(d/n) x / √(Σx²/n + ε d/n).

In front of a LayerNorm it comes out as γ t + β with t = -mean / σ. The norm goes on without it as long as it knows d
(`PaddedLayerNorm`), and t is not lost: the d normalised features sum to zero, so t is minus the sum of the n others over
d - n. A linear layer behind the norm takes that into its other columns. Where something else reads γ t + β, the unit stays.

In a forward of the user's own, an RMSNorm is known by its operations: x · rsqrt(mean(x²) + ε), times a parameter or a
parameter plus a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from paring.analysis import ops
from paring.analysis.labels import along, uniform, varying
from paring.analysis.memory import base_name
from paring.analysis.state import FeatureNorm, Ref, Site, State, module_path, packet, place
from paring.analysis.weights import is_a

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter

_CARRIES = ops.CASTS | ops.MOVES


def note(run: Interpreter, node: fx.Node, x: State, weight: object, bias: object, eps: float) -> bool:
    """Note a call of a LayerNorm or RMSNorm over the last dimension; False where its module does not say all of it.

    weight, bias: what the call takes.
    """
    name, path = packet(node.target), module_path(node)
    module = run.net.get_submodule(path)
    if not is_a(module, name) or not isinstance(weight, Ref) or weight.tensor is not module.weight:
        return False
    centred = name == "layer_norm"
    if centred and not (isinstance(module, nn.LayerNorm) and _alone(run, node) and _is(module.bias, bias)):
        return False
    gamma = _double(weight.tensor)
    beta = _double(bias.tensor) if isinstance(bias, Ref) else torch.zeros_like(gamma)
    number = f"{path}.eps" if path else "eps"
    reason = f"read by {name} in {place(node)}"
    norm = FeatureNorm(path, module, node, *_open(x), reason, centred, weight.name, gamma, beta, eps, number)
    return _noted(run, x, norm)


def note_mean(run: Interpreter, node: fx.Node, x: State) -> bool:
    """Note the mean of squares of an RMSNorm in plain operations; False where it is none, or cannot be changed.

    x: the squares.
    """
    found = _plain(run, node)
    if found is None:
        return False
    name, offset, eps, root = found
    path = module_path(node)
    module = run.net.get_submodule(path)
    leaves = [leaf for leaf, held in vars(module).items() if type(held) is float and held == eps]
    scale = attrgetter(name)(run.net)
    if len(leaves) != 1 or scale.shape != x.value.shape[-1:]:
        return False
    gamma = _double(scale) + offset
    number = f"{path}.{leaves[0]}" if path else leaves[0]
    reason = f"read by mean in {place(node)}"
    norm = FeatureNorm(
        path, module, node, *_open(x), reason, False, name, gamma, torch.zeros_like(gamma), eps, number, loose=True
    )
    run.positive.add(root)
    return _noted(run, x, norm)


def behind(run: Interpreter, node: fx.Node, labels: Tensor) -> FeatureNorm | None:
    """The LayerNorm whose features, all in their old order, this activation holds, moved along other dimensions at most.

    labels: those of its last dimension.
    """
    while base_name(node) in _CARRIES or (base_name(node) in ops.DROPOUTS and not noisy(run, node)):
        source = node.args[0]
        if not isinstance(source, fx.Node):
            return None
        node = source
    norm = run.centring.get(node)
    return norm if norm is not None and torch.equal(norm.labels, labels) else None


def takes_the_mean(norm: FeatureNorm, sites: Sequence[Site]) -> bool:
    """Whether all that reads a LayerNorm are linear layers that can take over what its mean adds to units that go.

    Without a new bias; a layer that is tied to an embedding has no weights left for these.
    """
    shifted, behind = bool((norm.beta != 0).any()), [site for site in sites if site.behind is norm]
    biased = [site for site in behind if can_move(site) and (not shifted or site.module.bias is not None)]
    readers = {site.node for site in (*biased, *(site for site in behind if site.tied))}
    waiting = [norm.node]
    while waiting:
        for user in waiting.pop().users:
            if user in readers or packet(user.target).startswith("_assert"):
                continue
            if base_name(user) not in _CARRIES:
                return False
            waiting.append(user)
    return True


def can_move(site: Site) -> bool:
    """Whether columns behind a LayerNorm can be folded: no scale is zero, and there is a bias, or nothing to add to it."""
    norm, biased = site.behind, getattr(site.module, "bias", None) is not None
    if norm is None or site.shared or not bool((norm.gamma != 0).all()):
        return False
    return biased or type(site.module) is nn.Linear or bool((norm.beta == 0).all())


def noisy(run: Interpreter, node: fx.Node) -> bool:
    """Whether a dropout is on."""
    told = node.args[2] if len(node.args) > 2 else node.kwargs.get("train")
    active = run.training or (told is True and not run.net.training)  # one that is on in eval mode
    return active and node.args[1:2] != (0.0,)


def _open(x: State) -> tuple[Tensor, Tensor]:
    """Labels and constants of the last dimension."""
    labels = along(x.labels, -1)
    constants = uniform(x.value, -1)
    return (torch.full_like(constants, -1, dtype=torch.int64) if labels is None else labels), constants


def _noted(run: Interpreter, x: State, norm: FeatureNorm) -> bool:
    if varying(x.labels) != [x.labels.dim() - 1]:
        return False
    run.features.append(norm)
    if norm.centred:
        run.centring[norm.node] = norm
    return True


def _alone(run: Interpreter, node: fx.Node) -> bool:
    """Whether the module of this node does nothing else."""
    path, name = module_path(node), packet(node.target)
    inside = (one for one in run.captured.nodes if one.op == "call_function" and module_path(one) == path)
    return all(packet(one.target) == name for one in inside)


def _is(own: object, held: object) -> bool:
    return own is None if held is None else isinstance(held, Ref) and held.tensor is own


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _plain(run: Interpreter, mean: fx.Node) -> tuple[str, float, float, fx.Node] | None:
    """Of an RMSNorm in plain operations, the parameter that scales it, the constant added to that, ε, and the root."""
    squares = mean.args[0]
    if not isinstance(squares, fx.Node) or (squared := _squared(squares)) is None:
        return None
    added = only_user(mean)
    eps = number_added(added, mean) if added is not None and base_name(added) == "add" else None
    root = None if added is None else only_user(added)
    if eps is None or eps <= 0 or added is None or root is None:
        return None
    kind = base_name(root)
    inverse = kind == "rsqrt" or (kind == "pow" and root.args[1] == -0.5)
    scaled = only_user(root)
    if scaled is None or not (inverse or kind == "sqrt") or base_name(scaled) != ("mul" if inverse else "div"):
        return None
    others = [arg for arg in scaled.args if arg is not root]
    if len(others) != 1 or uncast(others[0]) is not uncast(squared) or (not inverse and scaled.args[1] is not root):
        return None
    times = only_user(scaled)
    while times is not None and base_name(times) in ops.CASTS and times.args[0] is scaled:
        scaled, times = times, only_user(times)
    if times is None or base_name(times) != "mul":
        return None
    factor = next((arg for arg in times.args if arg is not scaled), None)
    scale = None if not isinstance(factor, fx.Node) else scale_behind(run, factor)
    return None if scale is None else (*scale, eps, root)


def scale_behind(run: Interpreter, factor: fx.Node) -> tuple[str, float] | None:
    """The parameter that a factor is made of, and what is added to it."""
    held, offset = uncast(factor), 0.0
    if isinstance(held, fx.Node) and base_name(held) == "add":
        source = next((arg for arg in held.args if isinstance(arg, fx.Node)), None)
        number = None if source is None else number_added(held, source)
        if number is None:
            return None
        held, offset = uncast(source), number
    if not isinstance(held, fx.Node) or held.name not in run.captured.tensors:
        return None
    return run.captured.tensors[held.name], offset


def _squared(node: fx.Node) -> object:
    """What this node squares; None if it does not."""
    name, args = base_name(node), node.args
    if (name == "pow" and args[1] == 2) or name == "square" or (name == "mul" and args[0] is args[1]):
        return args[0]
    return None


def number_added(node: fx.Node, other: fx.Node) -> float | None:
    """The number that a sum adds to the other operand."""
    numbers = [arg for arg in node.args if arg is not other]
    plain = len(node.args) == 2 and not node.kwargs and len(numbers) == 1
    return float(numbers[0]) if plain and isinstance(numbers[0], int | float) else None


def uncast(node: object) -> object:
    """What was cast to another type to give this."""
    while isinstance(node, fx.Node) and base_name(node) in ops.CASTS:
        node = node.args[0]
    return node


def only_user(node: fx.Node) -> fx.Node | None:
    """What alone uses this result."""
    users = [user for user in node.users if not packet(user.target).startswith("_assert")]
    return users[0] if len(users) == 1 else None
