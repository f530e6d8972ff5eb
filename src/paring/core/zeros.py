"""What stands where a layer was that only ever gave zeros: zeros of the same shape, and no parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_LIKE, _LINEAR, _CONV, _TRANSPOSED, _SAME, _TABLE, _ATTENTION = range(1, 8)
_SETTINGS = ("kernel_size", "stride", "padding", "dilation", "output_padding")


class Zeros(nn.Module):
    """Zeros of the shape that a layer gave.

    saved_as: "zeros" and positive numbers, which the constructor takes: what the layer was, its units, and for convolutions
    kernel, stride, padding, dilation and output padding, each increased by one. Of an attention, 2 units when its batch comes first.
    """

    def __init__(self, kind: int, units: int = 1, *settings: int) -> None:
        """Use `Zeros.of`.

        Raises:
            ValueError: the numbers say nothing.
        """
        super().__init__()
        rank, odd = divmod(len(settings), len(_SETTINGS))
        if not _LIKE <= kind <= _ATTENTION or odd or (rank > 0) != (kind in (_CONV, _TRANSPOSED, _SAME)):
            raise ValueError(f"{(kind, units, *settings)} says nothing of zeros")
        self.saved_as = ("zeros", kind, units, *settings)
        self.kind, self.units, self.rank = kind, units, rank
        if kind == _ATTENTION:  # what encoder layers ask of it; without a bias they do not fuse it with others
            self.batch_first, self.in_proj_bias = units > 1, None
        self.settings = [[n - 1 for n in settings[i * rank : (i + 1) * rank]] for i in range(len(_SETTINGS))]

    @classmethod
    def of(cls, layer: nn.Module, *, thin: bool = False) -> Zeros | None:
        """For this layer; None where it is none whose shapes are known. thin: one unit, for what is added to any number."""
        made: Zeros | None = None
        if isinstance(layer, nn.modules.conv._ConvNd):
            kind = _TRANSPOSED if layer.transposed else _SAME if layer.padding == "same" else _CONV
            sizes = [getattr(layer, name) for name in _SETTINGS]
            rank = len(layer.kernel_size)
            numbers = [n + 1 for size in sizes for n in ((0,) * rank if isinstance(size, str) else size)]
            made = cls(kind, 1 if thin else layer.out_channels, *numbers)
        elif isinstance(layer, nn.Linear):
            made = cls(_LINEAR, 1 if thin else layer.out_features)
        elif isinstance(layer, nn.Embedding):
            made = cls(_TABLE, 1 if thin else layer.embedding_dim)
        elif isinstance(layer, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm | nn.PReLU):
            made = cls(_LIKE)
        return made if made is None else made.train(layer.training)

    @classmethod
    def whole(cls, module: nn.Module) -> Zeros:
        """For any module that gives one tensor of the shape of its first argument, or for an attention of torch."""
        if isinstance(module, nn.MultiheadAttention):
            return cls(_ATTENTION, 1 + module.batch_first).train(module.training)
        return cls(_LIKE).train(module.training)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        if self.kind == _ATTENTION:
            return torch.zeros_like(x), None
        if self.kind == _LIKE:
            return torch.zeros_like(x)
        if self.kind == _TABLE:
            return torch.zeros(*x.shape, self.units, device=x.device)
        if self.kind == _LINEAR:
            return x.new_zeros(*x.shape[:-1], self.units)
        sizes = x.shape[x.dim() - self.rank :]
        if self.kind != _SAME:
            sizes = torch.Size(self._size(n, d) for d, n in enumerate(sizes))
        return x.new_zeros(*x.shape[: x.dim() - self.rank - 1], self.units, *sizes)

    def _size(self, before: int, d: int) -> int:
        kernel, stride, padding, dilation, beyond = (setting[d] for setting in self.settings)
        reach = dilation * (kernel - 1)
        if self.kind == _TRANSPOSED:
            return (before - 1) * stride - 2 * padding + reach + beyond + 1
        return (before + 2 * padding - reach - 1) // stride + 1

    def extra_repr(self) -> str:
        return "like its input" if self.kind == _LIKE else f"{self.units} units"
