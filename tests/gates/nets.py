"""Networks whose units are tied together, in the ways that occur."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PostAct(nn.Module):
    """A residual network with norms before the adds: the stream is read by convolutions."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.a, self.bn_a = nn.Conv2d(width, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.b, self.bn_b = nn.Conv2d(5, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.bn_b(self.b(F.relu(self.bn_a(self.a(x))))))
        return self.fc(x.mean((2, 3)))


class PreAct(nn.Module):
    """A pre-activation residual network: the stream is read by norms only."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn_a, self.a = nn.BatchNorm2d(width), nn.Conv2d(width, 5, 3, padding=1, bias=False)
        self.bn_b, self.b = nn.BatchNorm2d(5), nn.Conv2d(5, width, 3, padding=1, bias=False)
        self.bn, self.fc = nn.BatchNorm2d(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = x + self.b(F.relu(self.bn_b(self.a(F.relu(self.bn_a(x))))))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


class DenseCat(nn.Module):
    """Each block reads the concatenation of all before it, through a norm of its own."""

    def __init__(self, growth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, growth, 3, padding=1, bias=False)
        self.bn_a, self.a = nn.BatchNorm2d(growth), nn.Conv2d(growth, growth, 3, padding=1, bias=False)
        self.bn_b, self.b = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)
        self.bn, self.fc = nn.BatchNorm2d(3 * growth), nn.Linear(3 * growth, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = torch.cat([x, self.a(F.relu(self.bn_a(x)))], 1)
        x = torch.cat([x, self.b(F.relu(self.bn_b(x)))], 1)
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


class Squeeze(nn.Module):
    """A residual block with squeeze and excitation."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.a, self.bn_a = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.down, self.up, self.fc = nn.Linear(width, 3), nn.Linear(3, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.bn(self.stem(x)))
        y = self.bn_a(self.a(x))
        y = y * torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3))))))[:, :, None, None]
        return self.fc(F.relu(x + y).mean((2, 3)))


class GatedUnits(nn.Module):
    """silu(w1 x) * w3 x, the hidden units of many transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3, self.w2 = nn.Linear(5, 7), nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Any:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Inverted(nn.Module):
    """An inverted residual block: expand, depthwise, project, add."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.expand, self.bn_e = nn.Conv2d(width, 9, 1, bias=False), nn.BatchNorm2d(9)
        self.deep, self.bn_d = nn.Conv2d(9, 9, 3, padding=1, groups=9, bias=False), nn.BatchNorm2d(9)
        self.project, self.bn_p = nn.Conv2d(9, width, 1, bias=False), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Any:
        x = F.relu6(self.bn(self.stem(x)))
        y = F.relu6(self.bn_d(self.deep(F.relu6(self.bn_e(self.expand(x))))))
        x = x + self.bn_p(self.project(y))
        return self.fc(x.mean((2, 3)))


class HalfTied(nn.Module):
    """Two layers side by side are added to one of twice the width: that one has two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        return self.out(torch.relu(torch.cat([self.a(x), self.b(x)], 1) + self.c(x)))


IMAGES = (PostAct, PreAct, DenseCat, Squeeze, Inverted)
COUPLED = (*IMAGES, GatedUnits, HalfTied)


def batch(net: nn.Module, size: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    """Inputs for one of the networks above."""
    if isinstance(net, IMAGES):
        return torch.randn(size, 3, 6, 6, dtype=dtype)
    return torch.randn(size, 5 if isinstance(net, GatedUnits) else 4, dtype=dtype)


def shaken(net: nn.Module) -> nn.Module:
    """`net` with norms as they are after some training: no scale, shift or statistic is 0 or 1."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 2.0)
            module.bias.data.normal_()
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return net


class Attention(nn.Module):
    """A pre-norm transformer block over (N, T, 7) inputs, three heads of four. fused: queries, keys, values in one layer."""

    def __init__(self, fused: bool = True, kernel: bool = True) -> None:
        super().__init__()
        self.emb, self.n1, self.n2 = nn.Linear(7, 12), nn.LayerNorm(12), nn.LayerNorm(12)
        self.fused, self.kernel = fused, kernel
        if fused:
            self.qkv = nn.Linear(12, 36)
        else:
            self.q, self.k, self.v = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.proj, self.up, self.down, self.head = (nn.Linear(n, m) for n, m in ((12, 12), (12, 20), (20, 12), (12, 5)))

    def forward(self, x: Tensor) -> Any:
        x = self.emb(x)
        b, t, d = x.shape
        z = self.n1(x)
        qkv = self.qkv(z).chunk(3, -1) if self.fused else (self.q(z), self.k(z), self.v(z))
        q, k, v = (y.view(b, t, 3, d // 3).transpose(1, 2) for y in qkv)
        y = F.scaled_dot_product_attention(q, k, v) if self.kernel else torch.softmax(q @ k.mT / 2.0, -1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, d))
        x = x + self.down(F.gelu(self.up(self.n2(x))))
        return self.head(x)


class Library(nn.Module):
    """The same block with torch's own attention."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.emb, self.norm, self.head = nn.Linear(7, 12), nn.LayerNorm(12), nn.Linear(12, 5)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True, bias=bias)

    def forward(self, x: Tensor) -> Any:
        x = self.emb(x)
        z = self.norm(x)
        return self.head(x + self.attention(z, z, z, need_weights=False)[0])
