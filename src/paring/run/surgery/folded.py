"""Does a network compute the same once its gates are folded into the weights, or what is closed is left out?

Both are compared in float64, where only the mathematics shows: a fold that is right in bfloat16 and one that is wrong
differ too little otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paring.analysis.alone import alone
from paring.analysis.autocast import plainly
from paring.analysis.capture import untouched_random
from paring.core import Inputs, Refusal, gated_layers, release
from paring.removal.tolerances import UNMEASURED, differs, gap, one_path, refuse_nan

_FIRST = (torch.float64, torch.float32)


@alone()
def outputs(net: Callable[..., Any], inputs: Inputs, grad: bool) -> list[Tensor]:
    """Floating-point outputs of the network on the example, with or without recording gradients, without autocast."""
    with untouched_random(), torch.set_grad_enabled(grad), plainly(), one_path():
        found = pytree.tree_leaves(inputs.call(net))
    return [value.detach() for value in found if isinstance(value, Tensor) and value.is_floating_point()]


@dataclass(frozen=True)
class Judged:
    """A copy of a network in eval mode that can be compared exactly, its example, and the type in which it computes."""

    net: nn.Module
    example: Inputs
    dtype: torch.dtype

    @classmethod
    def of(cls, net: nn.Module, example: Inputs) -> Judged:
        """In float64; in float32, or as it is, where the network writes its own type into the forward."""
        for dtype in _FIRST:
            copy_, shown = copy.deepcopy(net).eval(), cast(example, dtype)
            try:
                copy_ = copy_.double() if dtype == torch.float64 else copy_.float()
                outputs(copy_, shown, False)
            except (RuntimeError, TypeError):
                continue
            return cls(copy_, shown, dtype)
        return cls(copy.deepcopy(net).eval(), example, dtype_of(net))

    def outputs(self, grad: bool = False) -> list[Tensor]:
        """Of the copy on the example.

        Raises:
            ValueError: they are NaN, see `refuse_nan`.
        """
        found = outputs(self.net, self.example, grad)
        refuse_nan(self.net, found)
        return found

    def differs(self, before: list[Tensor], after: list[Tensor]) -> Refusal | None:
        """None when the two are the same as far as this type can tell, else what is different."""
        return differs(before, after, self.dtype, lambda: UNMEASURED)


def cast(example: Inputs, dtype: torch.dtype) -> Inputs:
    """The example with its floating-point tensors in this type."""
    return example.map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf)


def dtype_of(net: nn.Module) -> torch.dtype:
    """The coarsest floating-point type of the parameters."""
    found = {p.dtype for p in net.parameters() if p.is_floating_point()}
    return max(found, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def same_or_raise(before: list[Tensor], after: list[Tensor], judged: Judged, gated: nn.Module) -> None:
    """Refuse gates that were folded into the weights if that changes what the network computes, and say whose.

    Args:
        before: outputs of the gated network.
        after: outputs of `judged` now, its gates folded.
        judged: a copy of the network.
        gated: the network with its gates.

    Raises:
        RuntimeError: it does.
    """
    problem = judged.differs(before, after)
    if not problem:
        return
    name = type(gated).__name__
    if judged.differs(after, judged.outputs()):
        raise RuntimeError(
            f"the forward of this {name} gives other outputs each time it is called, in eval mode too (random numbers, or a "
            "state of its own), so it cannot be seen whether the gates fold into the weights. Make it repeat itself in eval mode"
        )
    names = _culprits(gated, judged)
    listed = ", ".join(f"'{one}'" for one in names) or "not one alone"
    raise RuntimeError(
        f"folding the gates into the weights of this {name} would move its output ({problem}): its forward uses the weights "
        f"of a gated layer without calling that layer ({listed}). Exclude it from the gates "
        f"(at='units:!{names[0] if names else 'NAME'}'), or call the layer"
    )


def same_in_own_type(before: list[Tensor], after: list[Tensor], truth: list[Tensor], net: nn.Module) -> None:
    """Refuse folded weights that lose what the type of the network cannot hold.

    Args:
        before: outputs of the gated network in its own type.
        after: of the folded one.
        truth: of the gated one in float64.
        net: the folded network.

    Raises:
        RuntimeError: they do.
    """
    if problem := differs(before, after, dtype_of(net), lambda: gap(truth, before)):
        raise RuntimeError(
            f"folding the gates into the weights of this {type(net).__name__} is right in float64, but not in the type of its "
            f"weights ({problem}): some leave its range. Finish a copy in float32: run.finish(copy.deepcopy(net).float())"
        )


def _culprits(gated: nn.Module, judged: Judged) -> list[str]:
    """Layers whose gates alone, folded into the weights, move the outputs."""
    found = []
    for name, _ in gated_layers(gated):
        copy_ = copy.deepcopy(gated).eval().to(judged.dtype)
        before = outputs(copy_, judged.example, False)
        release(copy_.get_submodule(name))
        if judged.differs(before, outputs(copy_, judged.example, False)):
            found.append(name)
    return found
