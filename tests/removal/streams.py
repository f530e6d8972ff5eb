"""Small transformers with a residual stream of any width, and what makes units of it dead. All sizes are read off tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlainRMSNorm(nn.Module):
    """RMSNorm as Llama's code has it."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


class ShiftedRMSNorm(nn.Module):
    """RMSNorm as Gemma's code has it: the scale is one plus a parameter."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.double() if x.dtype == torch.float64 else x.float()
        y = wide / torch.sqrt((wide * wide).mean(-1, keepdim=True) + self.eps)
        return (y * (1.0 + self.weight)).type_as(x)


def layer_norm(width: int, eps: float) -> nn.Module:
    return nn.LayerNorm(width, eps=eps)


def rms_norm(width: int, eps: float) -> nn.Module:
    return nn.RMSNorm(width, eps=eps)


NORMS = {"layer": layer_norm, "rms": rms_norm, "plain": PlainRMSNorm, "shifted": ShiftedRMSNorm}


class Attention(nn.Module):
    """Heads of a fixed size, so that the stream may have any."""

    def __init__(self, width: int, inner: int = 8, heads: int = 2, *, bias: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=bias) for _ in range(3))
        self.out = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        q, k, v = (f(x).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(b, t, -1))


class Block(nn.Module):
    """before: the norms stand in front of the branches, else behind the sums, as BERT's do."""

    def __init__(self, width: int, norm: str, eps: float, *, bias: bool, causal: bool, before: bool) -> None:
        super().__init__()
        self.before = before
        self.norm1, self.norm2 = NORMS[norm](width, eps), NORMS[norm](width, eps)
        self.attention = Attention(width, bias=bias, causal=causal)
        self.up, self.down = nn.Linear(width, 12, bias=bias), nn.Linear(12, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            x = x + self.attention(self.norm1(x))
            return x + self.down(F.gelu(self.up(self.norm2(x))))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Language(nn.Module):
    """A language model: Llama's kind (RMSNorm, no biases, no positions) or GPT-2's; tied or not."""

    def __init__(self, width: int, norm: str, eps: float, *, tied: bool = True, depth: int = 2) -> None:
        super().__init__()
        plain = norm != "layer"
        self.words = nn.Embedding(13, width)
        self.places = None if plain else nn.Embedding(8, width)
        blocks = (Block(width, norm, eps, bias=not plain, causal=True, before=True) for _ in range(depth))
        self.blocks, self.norm = nn.ModuleList(blocks), NORMS[norm](width, eps)
        self.head = nn.Linear(width, 13, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        if self.places is not None:
            x = x + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Bert(nn.Module):
    """Three embeddings, a norm of their sum, norms behind the sums."""

    def __init__(self, width: int, eps: float, depth: int = 2) -> None:
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(13, width), nn.Embedding(8, width), nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        blocks = (Block(width, "layer", eps, bias=True, causal=False, before=False) for _ in range(depth))
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(width, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1])) + self.kinds(torch.zeros_like(ids))
        x = self.norm(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


class Vision(nn.Module):
    """A vision transformer with a class token and a table of positions."""

    def __init__(self, width: int, eps: float, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 5, width))
        blocks = (Block(width, "layer", eps, bias=True, causal=False, before=True) for _ in range(depth))
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(width, eps=eps)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def trained(net: nn.Module) -> nn.Module:
    """`net` in float64 and eval mode, none of its parameters what they begin as."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return net.double().eval()


def made(kind: str, width: int, eps: float) -> tuple[nn.Module, Tensor]:
    """A network of one of `KINDS`, and an input."""
    if kind == "bert":
        return trained(Bert(width, eps)), torch.randint(13, (2, 6))
    if kind == "vit":
        return trained(Vision(width, eps)), torch.randn(2, 3, 8, 8).double()
    norm, _, rest = kind.partition(" ")
    return trained(Language(width, norm, eps, tied=rest != "untied")), torch.randint(13, (2, 6))


KINDS = ["rms", "plain", "shifted", "plain untied", "layer", "layer untied", "bert", "vit"]


def kill(net: nn.Module, units: Tensor) -> None:
    """Nothing writes into these units of the stream: exact zeros in all that is added up there."""
    with torch.no_grad():
        for name, module in net.named_modules():
            leaf = name.rpartition(".")[2]
            if isinstance(module, nn.Embedding):
                module.weight[:, units] = 0
            elif leaf in ("out", "down", "patches"):
                module.weight[units] = 0
                if module.bias is not None:
                    module.bias[units] = 0
            elif isinstance(net, Bert) and isinstance(module, nn.LayerNorm):  # writes into the stream as well
                module.weight[units] = 0
                module.bias[units] = 0
        for name in ("token", "position"):
            if hasattr(net, name):
                getattr(net, name)[..., units] = 0
