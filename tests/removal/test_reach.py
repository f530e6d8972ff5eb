"""Dead units that user situations leave behind: all of them go, exactly, in float64."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.removal import Report, compact


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def kill(layer: nn.Module, units: Iterable[int], dim: int = 0) -> None:
    """Zero weights and biases of these units."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.index_fill_(dim if parameter.dim() > 1 else 0, torch.tensor(list(units)), 0.0)


def shrunk(net: nn.Module, *inputs: Tensor) -> tuple[nn.Module, Report]:
    """The small network, nothing rolled back, with the same outputs."""
    small, report = compact(net, inputs)
    assert not report.rolled_back, report
    torch.testing.assert_close(small(*inputs), net(*inputs), rtol=1e-12, atol=1e-12)
    return small, report


class NormedHeads(nn.Module):
    """Attention whose queries and keys are normalised within each head, as a module, a function or by hand."""

    def __init__(self, how: str, heads: int = 4, size: int = 6, width: int = 10) -> None:
        super().__init__()
        self.heads, self.how = heads, how
        self.q, self.k, self.v = (nn.Linear(width, heads * size) for _ in range(3))
        self.out = nn.Linear(heads * size, width)
        self.norm = nn.LayerNorm(size) if how == "layer" else nn.RMSNorm(size)

    def normed(self, x: Tensor) -> Tensor:
        if self.how == "by hand":
            return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.norm.weight
        return F.normalize(x, dim=-1) if self.how == "unit length" else self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(self.normed(q), self.normed(k), v)
        return self.out(mixed.transpose(1, 2).flatten(2))


def test_heads_go_through_norms_within_a_head() -> None:
    for how in ("layer", "rms", "by hand", "unit length"):
        torch.manual_seed(0)
        net = NormedHeads(how).double().eval()
        kill(net.v, range(6, 12))
        small, _ = shrunk(net, torch.randn(2, 5, 10, dtype=torch.float64))
        assert count(small) == count(net) - 3 * 11 * 6 - 6 * 10, how
