"""Dropout for a while: noise on what weight layers read, against overfitting while a network is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@contextmanager
def dropout(net: nn.Module, inputs: float, hidden: float) -> Iterator[None]:
    """While this lasts, in train mode, linear layers read inputs with dropout, the first weight layer with its own rate.

    Convolutions other than the first layer read their inputs as they are.

    Args:
        net: any module, in whose order the first weight layer is the one that reads the data.
        inputs: rate of the first weight layer, in [0, 1).
        hidden: rate of the other linear layers, in [0, 1).
    """
    if not (0 <= inputs < 1 and 0 <= hidden < 1):
        raise ValueError(f"dropout rates are in [0, 1), not {inputs} and {hidden}")
    layers = [module for module in net.modules() if isinstance(module, _LAYERS)]
    rates = [inputs, *(hidden if isinstance(layer, nn.Linear) else 0.0 for layer in layers[1:])]

    def noisy(rate: float) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (F.dropout(given[0], rate, module.training), *given[1:])

        return hook

    handles = [
        layer.register_forward_pre_hook(noisy(rate)) for layer, rate in zip(layers, rates, strict=False) if rate > 0
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
