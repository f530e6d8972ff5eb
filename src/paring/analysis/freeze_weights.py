"""Parametrised weights that are computed anew at every look, and move: here they stand still.

A spectral norm runs a step of power iteration whenever its weight is read in train mode. Looking at a network must not
change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList


@contextmanager
def freeze_weights(net: nn.Module) -> Iterator[None]:
    """Meanwhile the parametrisations of a network are in eval mode."""
    modes = {part: part.training for part in net.modules() if isinstance(part, ParametrizationList)}
    for part in modes:
        part.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.train(mode)


def like(net: nn.Module, other: nn.Module) -> nn.Module:
    """`net`, its parametrisations in the mode that those of `other` are in."""
    modes = {path: part.training for path, part in other.named_modules() if isinstance(part, ParametrizationList)}
    for path, part in net.named_modules():
        if isinstance(part, ParametrizationList) and path in modes:
            part.train(modes[path])
    return net
