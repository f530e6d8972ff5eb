"""A network through its file and back: what its bytes are, and what they decode to."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

from torch import nn

from paring.compression.tensors import ties, unique
from paring.core.unwrap import seen_through
from paring.files.pack import pack
from paring.files.pare import container


def through_file(net: nn.Module) -> tuple[nn.Module, int]:
    """The network decoded from the `.pare` file written for it, and the length of the file in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pare"
        size = pack(net, path, verify=False)
        stored = dict(container.File(path, max_bytes=1 << 62).tensors())
    decoded = copy.deepcopy(net)
    with seen_through(decoded):
        decoded.load_state_dict({**stored, **{alias: stored[name] for alias, name in ties(decoded).items()}})
    return decoded.eval(), size


def bits_per_weight(net: nn.Module) -> dict[str, float]:
    """Bits of a file for each entry of each tensor of two or more dimensions, by name.

    That is what a file with this tensor alone has more than one without any.
    """
    matrices = {name: value for name, value in unique(net).items() if value.dim() > 1 and value.numel()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pare"
        empty = pack({}, path, verify=False)
        return {n: 8 * (pack({n: v}, path, verify=False) - empty) / v.numel() for n, v in matrices.items()}
