"""Where the gates of a residual stream act: `at="stream"`.

One gate for each unit of the hidden size. It multiplies what every layer writes into the stream, so that closed ones leave exact
zeros there: that is what removal cuts (see `paring.analysis.feature_norms`), statistics of the norms included. It multiplies
scale and shift of LayerNorms as well that write into the stream themselves, as BERT's do, or that something reads which
cannot take over what their mean adds to a unit that goes, and parameters outside of layers that are added to the stream, such as
class tokens. A layer that is tied to an embedding is closed with it, and
multiplies its inputs.
"""

from __future__ import annotations

import torch
from torch import nn

from paring.analysis import Group, Wiring
from paring.core import PlaceKind, Refusal
from paring.core.gated_parameters import why_not_sliced
from paring.gates.coupled import Mount, entries
from paring.gates.why_not_gateable import of_carrier, of_layer


def stream_mounts(group: Group, wiring: Wiring, modules: dict[str, nn.Module]) -> tuple[Mount, ...] | Refusal:
    """The modules where one gate for this residual stream acts, or the reason why there can be none."""
    stream = group.stream
    assert stream is not None
    for one in stream.parameters:
        path, _, leaf = one.name.rpartition(".")
        why = why_not_sliced(modules.get(path), leaf) if one.inside else Refusal("another module than its own reads it")
        if why is not None:
            return Refusal(f"'{one.name}' is added to it, and cannot carry gates: {why}")
    for name in group.layers:
        tied = wiring.layer(name).lookup and stream.tied
        reason = of_carrier(name, modules.get(name)) or (None if tied else of_layer(name, wiring, modules))
        if reason is not None:
            return reason
    for name in (*stream.norms, *stream.tied):
        if (reason := of_carrier(name, modules.get(name))) is not None:
            return reason
    places: list[tuple[str, PlaceKind]] = [(name, "units") for name in (*group.layers, *stream.norms)]
    places += [(name, "inputs") for name in stream.tied]
    mounts = [Mount(name, tuple(entries(group, name, wiring, place=place).tolist()), place) for name, place in places]
    position = torch.full((wiring.units + 1,), -1)
    position[group.ids] = group.entry
    for one in stream.parameters:
        path, _, leaf = one.name.rpartition(".")
        mounts.append(Mount(path, tuple(position[one.ids].tolist()), "weights", leaf, one.dim))
    return tuple(mounts)
