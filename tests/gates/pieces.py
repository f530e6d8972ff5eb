"""Random small networks of the pieces that people put together, for properties that hold for all of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NormAct(nn.BatchNorm2d):
    """A norm with its activation inside."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class FrozenNorm(nn.Module):
    """Scale and shift in buffers, as in detectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        w, b, mean, variance = (getattr(self, name).reshape(1, -1, 1, 1) for name in self._buffers)
        scale = w * (variance + 1e-5).rsqrt()
        out: Tensor = x * scale + (b - mean * scale)
        return out


class Scale(nn.Module):
    """Layer scale."""

    def __init__(self, width: int, *, last: bool = False) -> None:
        super().__init__()
        self.gamma, self.last = nn.Parameter(torch.rand(width) + 0.5), last

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.gamma if self.last else self.gamma.view(1, -1, 1, 1))


class Residual(nn.Module):
    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


class Squeeze(nn.Module):
    """Channel attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Halves(nn.Module):
    """One half times a function of the other."""

    def __init__(self, dim: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.dim, self.act = dim, act

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, self.dim)
        return self.act(a) * b


class Dense(nn.Module):
    """What comes in, and what is made of it beside."""

    def __init__(self, made: nn.Module) -> None:
        super().__init__()
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.made(x)], 1)


class Timed(nn.Module):
    """An embedding of the time, added in front of a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.time, self.norm = nn.Conv2d(width, 8, 3, padding=1), nn.Linear(1, 8), nn.GroupNorm(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        time = self.time(x.new_ones(x.shape[0], 1))
        return F.silu(self.norm(self.conv(x) + time[:, :, None, None]))


class Attention(nn.Module):
    """Heads with a table of relative positions."""

    def __init__(self, width: int, places: int, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 6 * heads), nn.Linear(2 * heads, width)
        at = torch.arange(places)
        self.table = nn.Parameter(torch.randn(2 * places - 1, heads))
        self.register_buffer("index", at[:, None] - at[None] + places - 1)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index].permute(2, 0, 1).unsqueeze(0)  # type: ignore[index]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out: Tensor = self.out(y.transpose(1, 2).reshape(b, t, -1))
        return out


class Places(nn.Module):
    """A class token and positions."""

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.token, self.place = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, places + 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Mean(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


def image_piece(rng: random.Random, width: int) -> tuple[list[nn.Module], int]:
    """Layers on (batch, width, 4, 4), and how many channels they give."""
    new = rng.choice((6, 8, 12))
    conv = nn.Conv2d(width, new, *rng.choice(((1, 1, 0), (3, 1, 1))), bias=rng.random() < 0.7)
    act = rng.choice((nn.ReLU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh))()
    wide = 2 * new
    pieces: list[Callable[[], tuple[list[nn.Module], int]]] = [
        lambda: ([conv, nn.BatchNorm2d(new), act], new),
        lambda: ([conv, NormAct(new)], new),
        lambda: ([conv, nn.GroupNorm(new // 2, new), act], new),
        lambda: ([conv, nn.InstanceNorm2d(new, affine=rng.random() < 0.5), act], new),
        lambda: ([conv, FrozenNorm(new), act], new),
        lambda: ([conv, act, nn.MaxPool2d(3, 1, 1)], new),
        lambda: ([conv, Squeeze(new)], new),
        lambda: ([Residual(conv, nn.BatchNorm2d(new), act, nn.Conv2d(new, width, 1), Scale(width)), act], width),
        lambda: (
            [
                Residual(
                    nn.Conv2d(width, wide, 1),
                    nn.Conv2d(wide, wide, 3, padding=1, groups=wide),
                    NormAct(wide),
                    nn.Conv2d(wide, width, 1, bias=False),
                    nn.BatchNorm2d(width),
                )
            ],
            width,
        ),
        lambda: ([nn.Conv2d(width, wide, 1), Halves(1, rng.choice((torch.sigmoid, F.silu, F.gelu)))], new),
        lambda: ([nn.Conv2d(width, wide, 3, padding=1), nn.GLU(1)], new),
        lambda: ([Dense(nn.Sequential(nn.Conv2d(width, 4, 3, padding=1), NormAct(4)))], width + 4),
        lambda: ([Timed(width)], 8),
    ]
    return rng.choice(pieces)()


def token_piece(rng: random.Random, width: int, places: int) -> list[nn.Module]:
    """Layers on (batch, places, width)."""
    hidden = rng.choice((8, 12))
    act = rng.choice((nn.ReLU, nn.SiLU, nn.GELU))()
    mlp = [nn.Linear(width, hidden), act, nn.Linear(hidden, width)]
    pieces: list[Callable[[], list[nn.Module]]] = [
        lambda: [Residual(*mlp, Scale(width, last=True))],
        lambda: [Residual(nn.LayerNorm(width), *mlp)],
        lambda: [Residual(nn.Linear(width, 2 * hidden), Halves(-1, F.silu), nn.Linear(hidden, width))],
        lambda: [Residual(nn.LayerNorm(width), nn.Linear(width, 2 * hidden), nn.GLU(-1), nn.Linear(hidden, width))],
        lambda: [Residual(nn.LayerNorm(width), Attention(width, places), Scale(width, last=True))],
        lambda: [Residual(Attention(width, places))],
        lambda: [nn.Linear(width, width), act],
    ]
    return rng.choice(pieces)()


def random_net(seed: int) -> tuple[nn.Module, Tensor]:
    """A network in eval mode, float64, with statistics of its norms that are not those of the beginning, and an input."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    width, layers = 8, [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
    for _ in range(rng.randint(1, 4)):
        made, width = image_piece(rng, width)
        layers += made
    if rng.random() < 0.5:
        places = 16
        layers.append(Tokens())
        if rng.random() < 0.5:
            layers.append(Places(width, places))
            places += 1
        for _ in range(rng.randint(1, 3)):
            layers += token_piece(rng, width, places)
        layers += [Mean(1), nn.Linear(width, 5)]
    else:
        layers += [Mean(2, 3), nn.Linear(width, 5)]
    net: Any = nn.Sequential(*layers).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net, torch.randn(4, 3, 4, 4, dtype=torch.float64)
