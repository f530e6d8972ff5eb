"""Gates in a layer whose class derives from one that takes gates and brings a forward of its own.

What such a forward does round the layer's operation nobody knows: an activation, a padding, a softmax over experts. So gates
act on the operation itself, as they do in the class that it derives from: the forward sees

    weight · weight gate · input gates along its columns · unit gates along its units,        bias · unit gates

and what it does with the result stays behind the gates. Taken out, the gates are multiplied into the same parameters. One
sample per example cannot be in a parameter: there the input and the result of the operation are multiplied, wherever in the
forward it is called.

Whether the operation reads the parameters as they are is not asked here: the captured graph says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, cast

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from paring.core.gate import Gate
from paring.core.kinds import kind_of, stock_class
from paring.core.layers import Gated, along, whole_batch
from paring.core.packed import seen

_LAST = ("linear", "embedding", "addmm", "layer_norm")  # operations with the features last


class GatedSubclass(Gated):
    """Gates round the operation in the forward of the class behind it, `class _(GatedSubclass, Theirs)`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        apart = {place: gate for place, gate in self.gates().items() if place != "weights" and _apart(gate)}
        shown = self._shown(apart)
        with seen(self, shown), _Watch(self, shown, apart) if apart else nullcontext():
            return super().forward(*args, **kwargs)

    def _shown(self, apart: Mapping[Any, Gate]) -> dict[str, Tensor]:
        """Parameters as the forward sees them; only those that a gate changes."""
        known = kind_of(self)
        assert known is not None
        leaf = known.scaled[0]
        weight = whole = cast(Tensor, getattr(self, leaf))
        found: dict[str, Tensor] = {}
        weight = self.gated_weight(weight)
        if whole_batch(self.input_gate) and "inputs" not in apart:
            assert self.input_gate is not None
            weight = weight * known.along_inputs(self, self.input_gate().to(weight.dtype))
        if whole_batch(self.unit_gate) and "units" not in apart:
            assert self.unit_gate is not None
            z = self.unit_gate().to(weight.dtype)
            weight = weight * known.along_units(self, leaf, z)
            for other in known.scaled[1:]:
                if isinstance(held := getattr(self, other, None), Tensor):
                    found[other] = held * known.along_units(self, other, z)
        if whole_batch(self.block_gate) and "blocks" not in apart:
            assert self.block_gate is not None
            z = self.block_gate().to(weight.dtype)
            weight = weight * z
            for other in known.scaled[1:]:
                if isinstance(held := found.get(other, getattr(self, other, None)), Tensor):
                    found[other] = held * z
        return found if weight is whole else {leaf: weight, **found}

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (_blank, (stock_class(self),), *super().__reduce_ex__(protocol)[2:])


def _apart(gate: Gate) -> bool:
    return gate.per_example and gate.training and not gate.transparent


class _Watch(TorchFunctionMode):
    """Multiplies what goes into the layer's operation, and what comes out of it, by gates with a row for each example."""

    def __init__(self, layer: GatedSubclass, shown: Mapping[str, Tensor], apart: Mapping[Any, Gate]) -> None:
        super().__init__()
        known = kind_of(layer)
        assert known is not None
        self.operation, self.apart = known.operation, apart
        self.weight = shown.get(known.scaled[0], getattr(layer, known.scaled[0]))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not name.startswith(self.operation) or not any(one is self.weight for one in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        at = next((i for i, one in enumerate(args) if self._is_input(one)), None)
        x = kwargs["input"] if at is None else args[at]
        if (gate := self.apart.get("inputs")) is not None:
            multiplied = along(x, gate(x.shape[0]), self._axis(x))
            args = args if at is None else (*args[:at], multiplied, *args[at + 1 :])
            kwargs = {**kwargs, "input": multiplied} if at is None else kwargs
        y = func(*args, **kwargs)
        if (gate := self.apart.get("units")) is not None:
            y = along(y, gate(y.shape[0]), self._axis(y))
        if (gate := self.apart.get("blocks")) is not None:
            y = along(y, gate(y.shape[0]), self._axis(y))
        return y

    def _is_input(self, held: object) -> bool:
        """The first tensor that is neither the weight nor, before it in addmm, the bias."""
        return isinstance(held, Tensor) and held is not self.weight and (self.operation != "addmm" or held.dim() > 1)

    def _axis(self, x: Tensor) -> int:
        if self.operation in _LAST:
            return x.dim() - 1
        return x.dim() + 1 - self.weight.dim() if self.operation == "conv" else 1


_MADE: dict[type[nn.Module], type[GatedSubclass]] = {}


def gated_subclass(layer: type[nn.Module]) -> type[GatedSubclass]:
    """The class with gates that takes the place of this one, the same one every time."""
    if layer not in _MADE:
        told = {"__module__": __name__, "__doc__": layer.__doc__}
        _MADE[layer] = type(f"Gated{layer.__name__}", (GatedSubclass, layer), told)
    return _MADE[layer]


def _blank(layer: type[nn.Module]) -> nn.Module:
    """An empty module of the class with gates, for copies and pickles."""
    made = gated_subclass(layer)
    return made.__new__(made)
