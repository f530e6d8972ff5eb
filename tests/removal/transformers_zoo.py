"""Small transformers with the ways of writing attention that are in use; sizes are written into their forwards."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention of one style: how heads are split, and how scores are computed."""

    def __init__(self, width: int = 16, heads: int = 4, style: str = "sdpa", causal: bool = False) -> None:
        super().__init__()
        self.heads, self.style, self.causal = heads, style, causal
        if style in ("fused", "chunked", "gpt"):
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, t, c = x.shape
        h, d = self.heads, c // self.heads
        if self.style == "fused":
            q, k, v = self.qkv(x).reshape(b, t, 3, h, d).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        parts = self.qkv(x).split(c, 2) if self.style == "gpt" else None
        parts = self.qkv(x).chunk(3, -1) if self.style == "chunked" else parts
        parts = (self.q(x), self.k(x), self.v(x)) if parts is None else parts
        q, k, v = (part.view(b, t, h, d).transpose(1, 2) for part in parts)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.split(x)
        if self.style == "softmax":
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
            if self.causal:
                scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).tril().logical_not(), -torch.inf)
            y = F.dropout(scores.softmax(-1), 0.0, self.training) @ v
        elif self.style == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q * (c // self.heads) ** -0.5, k)
            y = torch.einsum("bhqk,bhkd->bhqd", torch.softmax(scores, -1), v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(y.transpose(1, 2).reshape(b, t, c))


class Gated(nn.Module):
    """SwiGLU with one fused linear."""

    def __init__(self, width: int = 16, hidden: int = 12) -> None:
        super().__init__()
        self.both, self.out = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.both(x).chunk(2, -1)
        return self.out(F.silu(gate) * value)


class Block(nn.Module):
    def __init__(self, attention: nn.Module, width: int = 16, gated: bool = False) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.mlp = Gated(width) if gated else nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer on 8x8 images."""

    def __init__(self, style: str = "sdpa", gated: bool = False, depth: int = 1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 5, 16))
        self.blocks = nn.ModuleList(Block(Attention(style=style), gated=gated) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class GPT(nn.Module):
    """A causal language model with tied embeddings, in the shape of nanoGPT."""

    def __init__(self, style: str = "gpt", depth: int = 1) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 16), nn.Embedding(6, 16)
        self.blocks = nn.Sequential(*(Block(Attention(style=style, causal=True)) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x) + self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(x)))
