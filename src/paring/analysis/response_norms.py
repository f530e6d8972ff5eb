"""Global response norm (Woo et al. 2023, ConvNeXt V2, arXiv:2301.00808, section 3): units compete with the mean of all.

With g the norm of each channel over places, y = γ x g / (mean(g) + ε) + β (+ x). The mean is over d channels. A channel that is
always zero has g = 0 and comes out as β, but it counts in the mean: of the n others the mean is d/n as large, so

    g / (Σg/d + ε) = d/n · g / (Σg/n + ε d/n)

and without it the scale takes d/n and ε becomes ε d/n. Found by its operations, whatever the forward calls them.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from torch import fx

from paring.analysis import ops
from paring.analysis.feature_norms import number_added, only_user, scale_behind, uncast
from paring.analysis.labels import along, uniform
from paring.analysis.memory import base_name
from paring.analysis.state import FeatureNorm, State, module_path, place

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter

_NEVER_NEGATIVE = ("norm", "linalg_vector_norm", "abs", "square", "relu", "sqrt")


def note_response(run: Interpreter, node: fx.Node, x: State, dim: int) -> bool:
    """Note the mean of a global response norm over the units along `dim`; False where it is none, or cannot be changed.

    Where ε is written into the forward and no attribute, only the graph can change.
    """
    found = _pattern(run, node)
    labels = along(x.labels, dim)
    if found is None or labels is None:
        return False
    name, offset, eps, sum_ = found
    path = module_path(node)
    module = run.net.get_submodule(path)
    leaves = [leaf for leaf, held in vars(module).items() if type(held) is float and held == eps]
    if len(leaves) != 1 and not run.free:
        run.held_back = True
        return False
    number = ".".join(part for part in (path, leaves[0]) if part) if len(leaves) == 1 else ""
    gamma = attrgetter(name)(run.net).detach().cpu().double() + offset
    run.features.append(
        FeatureNorm(
            path,
            module,
            node,
            labels,
            uniform(x.value, dim),
            f"read by mean in {place(node)}",
            False,
            name,
            gamma,
            gamma.new_zeros(()),
            eps,
            number,
            loose=True,
            response=True,
        )
    )
    run.positive.add(sum_)
    return True


def _pattern(run: Interpreter, mean: fx.Node) -> tuple[str, float, float, fx.Node] | None:
    """The parameter that scales what is divided by this mean and ε, what is added to it, ε, and the sum of both."""
    responses, added = uncast(mean.args[0]), only_user(mean)
    if not isinstance(responses, fx.Node) or base_name(responses) not in _NEVER_NEGATIVE or added is None:
        return None
    eps, shared = number_added(added, mean) if base_name(added) == "add" else None, only_user(added)
    if eps is None or eps <= 0 or shared is None or base_name(shared) != "div" or shared.args[1] is not added:
        return None
    scale = _scale(run, shared) if uncast(shared.args[0]) is responses else None
    return None if scale is None else (*scale, eps, added)


def _scale(run: Interpreter, node: fx.Node) -> tuple[str, float] | None:
    """The parameter, and what is added to it, that all that is made of a result is multiplied by."""
    while (user := only_user(node)) is not None:
        if base_name(user) == "mul":
            factors = user.args
        elif base_name(user) == "addcmul" and user.args[0] is not node and not user.kwargs:
            factors = user.args[1:]
        elif base_name(user) in ops.CASTS:
            node = user
            continue
        else:
            return None
        other = next((arg for arg in factors if arg is not node), None)
        scale = scale_behind(run, _laid(other)) if isinstance(other, fx.Node) and other not in run.moving else None
        if scale is not None or base_name(user) != "mul":
            return scale
        node = user
    return None


def _laid(node: fx.Node) -> fx.Node:
    """What a view shows along other dimensions."""
    while base_name(node) in (*ops.RESHAPES, "unsqueeze", "expand") and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node
