"""Encoder layers of torch that call their parts: in eval mode they fuse them, and would read weights past the gates on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

_SWITCHES: dict[type[nn.Module], tuple[str, Any]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
"""What switches the fused path of a class on, and its value for off."""
_BEFORE = "_before_gates"


def unfuse(modules: Mapping[str, nn.Module], name: str) -> None:
    """Switch off the fused paths of all that contains this module, until `fuse_again`. modules: of the network, by name."""
    parts = name.split(".")[:-1]
    for length in range(len(parts) + 1):
        module = modules.get(".".join(parts[:length]))
        for kind, (leaf, off) in _SWITCHES.items():
            if isinstance(module, kind) and _BEFORE not in vars(module) and hasattr(module, leaf):
                setattr(module, _BEFORE, getattr(module, leaf))
                setattr(module, leaf, off)


def part_of_fused(module: nn.Module) -> None:
    """Switch off the fused path of a module, one of whose parts is no longer what that reads, for good."""
    for kind, (leaf, off) in _SWITCHES.items():
        if isinstance(module, kind) and hasattr(module, leaf):
            setattr(module, leaf, off)


def fuse_again(net: nn.Module) -> None:
    """Put all switches back."""
    for module in net.modules():
        for kind, (leaf, _) in _SWITCHES.items():
            if isinstance(module, kind) and _BEFORE in vars(module):
                setattr(module, leaf, vars(module).pop(_BEFORE))
