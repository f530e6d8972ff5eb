"""Where recurrent layers of torch (RNN, GRU, LSTM, and single cells of these) keep their sizes.

One layer and direction of a stack has `weight_ih` (gates x H, inputs), `weight_hh` (gates x H, H or P), biases (gates x H)
and, with a projection, `weight_hr` (P, H): the rows of hidden unit j are j, H + j, 2H + j, ... All layers and directions
have the same H and the same P. A cell has the first four, without the name of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paring.core.layers import Gated

GATES: dict[type[nn.Module], int] = {
    nn.RNN: 1,
    nn.GRU: 3,
    nn.LSTM: 4,
    nn.RNNCell: 1,
    nn.GRUCell: 3,
    nn.LSTMCell: 4,
}


def gates_of(module: nn.Module) -> int:
    """How many rows of a weight one hidden unit has; 0 for what is no stock recurrent layer."""
    plain = type(module).__mro__[1:] if isinstance(module, Gated) else (type(module),)
    return next((GATES[one] for one in plain if one in GATES), 0)


def suffixes(module: nn.Module) -> list[list[str]]:
    """What the names of each layer's parameters end in: one list for a layer, one entry for a direction."""
    if not isinstance(module, nn.RNNBase):
        return [[""]]
    ways = ("", "_reverse") if module.bidirectional else ("",)
    return [[f"_l{layer}{way}" for way in ways] for layer in range(module.num_layers)]


def hidden_count(module: nn.Module) -> int:
    """Hidden units of all layers and directions; with a projection, those of its results too."""
    return sum(sum(_each(module)) for ways in suffixes(module) for _ in ways)


def unit_factors(module: nn.Module, value: Tensor, *, candidates: bool = True) -> dict[str, Tensor]:
    """What a factor of each hidden unit multiplies, laid out against the parameters.

    Of a unit the rows that its state is made of: all of an RNN's, n of a GRU, g of an LSTM. A state that begins at zero then
    stays zero where the factor is. A result of a projection is a row of `weight_hr`.

    Args:
        module: a recurrent layer or cell.
        value: (`hidden_count`,), layer after layer, direction after direction, the projected ones of each at its end.
        candidates: False takes all rows of a unit.
    """
    found, start, gates = {}, 0, gates_of(module)
    for end in (end for ways in suffixes(module) for end in ways):
        hidden, projected = _each(module)
        own, results = value[start : start + hidden], value[start + hidden : start + hidden + projected]
        ones = torch.ones_like(own)
        chosen = range(gates) if not candidates else (0 if gates == 1 else 2,)
        rows = torch.cat([own if gate in chosen else ones for gate in range(gates)])
        for leaf in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            if (held := getattr(module, leaf + end, None)) is not None:
                found[leaf + end] = rows.view(-1, *[1] * (held.dim() - 1)).to(held.dtype)
        if projected:
            found[f"weight_hr{end}"] = results.view(-1, 1).to(value.dtype)
        start += hidden + projected
    return found


def _each(module: nn.Module) -> tuple[int, int]:
    """Hidden units of one layer and direction, and results of its projection."""
    return int(module.hidden_size), int(getattr(module, "proj_size", 0))  # type: ignore[arg-type]


def packed_weights(module: nn.Module) -> tuple[str, ...]:
    """The weights of all layers and directions, those that a hook computes too."""
    ends = (end for ways in suffixes(module) for end in ways)
    held = (f"{leaf}{end}" for end in ends for leaf in ("weight_ih", "weight_hh", "weight_hr"))
    return tuple(leaf for leaf in held if isinstance(getattr(module, leaf, None), Tensor))


def resize_recurrent(module: nn.Module) -> None:
    """Set the sizes to what the tensors of the first layer say, and let the forward use the parameters that are there."""
    for leaf in list(module._parameters):
        setattr(module, leaf, module._parameters[leaf])  # the list of flat weights follows
    end = suffixes(module)[0][0]
    (_, inputs), (rows, width) = _shape(module, f"weight_ih{end}"), _shape(module, f"weight_hh{end}")
    sizes = {"input_size": inputs, "hidden_size": rows // gates_of(module)}
    if getattr(module, "proj_size", 0):
        sizes["proj_size"] = width
    for name, size in sizes.items():
        setattr(module, name, size)


def misfit_recurrent(module: nn.Module) -> str:
    """What does not fit among the tensors of the layers; nothing if all does."""
    end, gates, projected = suffixes(module)[0][0], gates_of(module), bool(getattr(module, "proj_size", 0))
    (_, inputs), (rows, width) = _shape(module, f"weight_ih{end}"), _shape(module, f"weight_hh{end}")
    hidden = rows // gates
    for ways in suffixes(module):
        for end in ways:
            wanted: dict[str, tuple[int, ...]] = {
                f"weight_ih{end}": (gates * hidden, inputs),
                f"weight_hh{end}": (gates * hidden, width),
            }
            if module.bias:
                wanted |= {f"bias_ih{end}": (gates * hidden,), f"bias_hh{end}": (gates * hidden,)}
            if projected:
                wanted[f"weight_hr{end}"] = (width, hidden)
            for leaf, shape in wanted.items():
                if _shape(module, leaf) != shape:
                    return f"has a {leaf} of {_shape(module, leaf)}, where {shape} fits the others"
        inputs = width * len(ways)
    return "" if projected or width == hidden else f"has {hidden} hidden units, and reads {width}"


def _shape(module: nn.Module, leaf: str) -> tuple[int, ...]:
    held = getattr(module, leaf)
    assert isinstance(held, Tensor)
    return tuple(held.shape)
