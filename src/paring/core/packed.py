"""Gates on weights that a layer packs together, or reads without calling the layer that holds them.

`nn.MultiheadAttention` reads its projections itself, that of its result too; recurrent layers read a list of all their
parameters. Meanwhile their forward sees

    w̃ = what the gate makes of w,    w̃ + σ ε for a gate with noise (one ε for all positions and steps of a forward)

in place of each of them. `Kind.packed` names them, each has a gate of its own, and keys, copies and files stay as they were.

For recurrent layers one sample of the noise for a whole sequence is that of Lobacheva, Chirkova, Vetrov 2017
(arXiv 1708.00077).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn

from paring.core.gate import Gate, noise_dtype
from paring.core.layers import Gated
from paring.core.recurrent import unit_factors


class GatedPacked(Gated):
    """Gates on the weights of a layer whose forward reads them by name: `class GatedMine(GatedPacked, Mine)`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with seen(self, self.shown()):
            return super().forward(*args, **kwargs)

    def shown(self) -> dict[str, Any]:
        """What the forward sees in place of the attributes of these names: parameters that a gate changes."""
        gates = {leaf: gate for leaf, gate in self.at_weights().items() if not gate.transparent}
        return {leaf: _drawn(gate, cast(Tensor, attrgetter(leaf)(self))) for leaf, gate in gates.items()}


class GatedCell(GatedPacked):
    """The same for `nn.RNNCell`, `nn.LSTMCell` and `nn.GRUCell`, with gates on their hidden units as well."""

    def shown(self) -> dict[str, Any]:
        found = super().shown()
        if self.unit_gate is None or self.unit_gate.transparent:
            return found
        for leaf, factor in unit_factors(self, self.unit_gate()).items():
            held = found[leaf] if leaf in found else cast(Tensor, getattr(self, leaf))
            found[leaf] = held * factor.to(held.dtype)
        return found


class GatedRecurrent(GatedCell):
    """The same for `nn.RNN`, `nn.LSTM` and `nn.GRU`, whose forward reads a list of parameters."""

    def shown(self) -> dict[str, Any]:
        found = super().shown()
        names = cast(list[str], self._flat_weights_names) if found else []
        flat = [found[name] if name in found else getattr(self, name, None) for name in names]
        return {"_flat_weights": flat} if found else {}


class GatedRNN(GatedRecurrent, nn.RNN):
    """`nn.RNN` with gates."""


class GatedLSTM(GatedRecurrent, nn.LSTM):
    """`nn.LSTM` with gates."""


class GatedGRU(GatedRecurrent, nn.GRU):
    """`nn.GRU` with gates."""


class GatedRNNCell(GatedCell, nn.RNNCell):
    """`nn.RNNCell` with gates."""


class GatedLSTMCell(GatedCell, nn.LSTMCell):
    """`nn.LSTMCell` with gates."""


class GatedGRUCell(GatedCell, nn.GRUCell):
    """`nn.GRUCell` with gates."""


def packed_name(path: str, leaf: str) -> str:
    """What a packed weight is called among the layers of a network: as its parameter, or as the part that holds it."""
    return (f"{path}.{leaf}" if path else leaf).removesuffix(".weight")


def named_weight(net: nn.Module, name: str) -> nn.Parameter:
    """The weight of the layer of this name, or the packed one that `packed_name` called so."""
    owner = next((module for path, module in net.named_modules() if path == name), None)
    weight = net.get_parameter(name) if owner is None else owner._parameters["weight"]
    assert weight is not None
    return weight


@contextmanager
def seen(module: nn.Module, shown: Mapping[str, Any]) -> Iterator[None]:
    """These stand before the attributes of the same names, of the module or (with a dot) of a part of it."""
    held: list[tuple[dict[str, Any], str, tuple[Any, ...]]] = []
    try:
        for name, value in shown.items():
            path, _, leaf = name.rpartition(".")
            space = (module.get_submodule(path) if path else module).__dict__
            held.append((space, leaf, (space[leaf],) if leaf in space else ()))
            space[leaf] = value
        yield
    finally:
        for space, leaf, before in held:
            if before:
                space[leaf] = before[0]
            else:
                del space[leaf]


def _drawn(gate: Gate, weight: Tensor) -> Tensor:
    seen_, variance = gate.see(weight), gate.variance(weight)
    if variance is None:
        return seen_
    noise = torch.randn(weight.shape, device=weight.device, dtype=noise_dtype(weight.dtype))
    return seen_ + variance.sqrt() * noise.to(weight.dtype)
