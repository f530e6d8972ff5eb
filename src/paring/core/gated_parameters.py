"""Gates on slices of a parameter or buffer that no layer computes with: class tokens, tables of positions.

The module that holds it sees what the gate makes of it while its forward runs; keys, copies and files stay as they were.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from paring.core.gate import Gate
from paring.core.kinds import kind_of, stock_class
from paring.core.layers import Gated, key_of
from paring.core.packed import GatedPacked
from paring.core.refusal import Refusal
from paring.core.shared_gate import SharedGate


class GatedOwner(GatedPacked):
    """A module of the user's own that holds such parameters."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (_blank, (stock_class(self),), *super().__reduce_ex__(protocol)[2:])


class SliceGate(SharedGate):
    """A gate for the slices of a tensor along one dimension: one multiplier for a whole batch.

    Args:
        gate: of shape (n,).
        index: for each slice its entry in the gate, -1 for none.
        dim: the dimension.
    """

    def __init__(self, gate: Gate, index: Tensor, dim: int) -> None:
        super().__init__([gate], index)
        self.dim = dim

    def see(self, weight: Tensor) -> Tensor:
        return weight * self._laid(self(), weight)

    def fold(self, weight: Tensor) -> Tensor:
        return weight * self._laid(self.value(), weight)

    def _laid(self, value: Tensor, weight: Tensor) -> Tensor:
        return value.to(weight.dtype).view([-1 if d == self.dim else 1 for d in range(weight.dim())])


def why_not_sliced(module: nn.Module | None, leaf: str) -> Refusal | None:
    """Why a tensor of this module cannot have gates on its slices; None when it can."""
    if module is None or kind_of(module) is not None or "forward" in vars(module):
        return Refusal("it belongs to a layer, or to a module whose forward was replaced on the instance")
    if not isinstance(module._parameters.get(leaf, module._buffers.get(leaf)), Tensor):
        return Refusal("it is no parameter or buffer of its module")
    return None


def share_slices(module: nn.Module, leaf: str, gate: Gate, index: Tensor, dim: int) -> Gated:
    """Hang a gate that layers hold too on slices of a tensor of `module`, in place, swapping its class to a gated one.

    Raises:
        TypeError: see `why_not_sliced`.
        ValueError: these slices have a gate already.
    """
    if (reason := why_not_sliced(module, leaf)) is not None:
        raise TypeError(f"'{leaf}' of this {type(module).__name__} cannot carry gates: {reason}")
    if not isinstance(module, Gated):
        module.__class__ = _gated_owner(type(module))
        for name in ("unit_gate", "input_gate", "weight_gate", "block_gate"):
            module.register_module(name, None)
        module.weight_gates = nn.ModuleDict()
    held = cast(nn.ModuleDict, module.weight_gates)
    if key_of(leaf) in held:
        raise ValueError(f"'{leaf}' of this {type(module).__name__} has a gate already")
    held[key_of(leaf)] = SliceGate(gate, index.to(gate.support().device), dim)
    gate.train(module.training)
    return cast(Gated, module)


_MADE: dict[type[nn.Module], type[GatedOwner]] = {}


def _gated_owner(owner: type[nn.Module]) -> type[GatedOwner]:
    if owner not in _MADE:
        told = {"__module__": __name__, "__doc__": owner.__doc__}
        _MADE[owner] = type(f"Gated{owner.__name__}", (GatedOwner, owner), told)
    return _MADE[owner]


def _blank(owner: type[nn.Module]) -> nn.Module:
    """An empty module of the class with gates, for copies and pickles."""
    made = _gated_owner(owner)
    return made.__new__(made)
