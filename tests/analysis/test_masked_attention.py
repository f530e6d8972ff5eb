"""Heads leave attention whose mask is copied for each of them, as `nn.MultiheadAttention` copies a padding mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.gates import groups
from paring.removal import compact

X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)).double()


def padding(batch: int, kind: str) -> Tensor:
    """True or -inf where a position is padding; the first position never is."""
    hidden = torch.rand(batch, 5) < 0.4
    hidden[:, 0] = False
    return hidden if kind == "bool" else torch.zeros(batch, 5).double().masked_fill(hidden, -torch.inf)


class Padded(nn.Module):
    """Attention of PyTorch with a padding mask, and a mask over positions."""

    def __init__(self, need_weights: bool, positions: str) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.need_weights, self.positions = need_weights, positions

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        given: dict[str, Any] = {"key_padding_mask": mask, "need_weights": self.need_weights}
        if self.positions:
            later = torch.ones(5, 5, dtype=torch.bool).triu(1)
            given["attn_mask"] = later if self.positions == "bool" else 0.3 * later.to(x.dtype)
        return x + self.attention(x, x, x, **given)[0]


class Copied(nn.Module):
    """Attention by hand, with a mask that is copied for each head."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.qkv, self.proj, self.how = nn.Linear(16, 48), nn.Linear(16, 16), how

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (part.view(b, t, 4, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        copies = mask[:, None, None, :].expand(b, 4, t, t)
        if self.how == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=copies)
        else:
            scores = q @ k.mT / 2
            scores = scores + copies if self.how == "add" else scores.masked_fill(copies, -torch.inf)
            y = scores.softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).flatten(2))


def weakened(net: nn.Module, heads: tuple[int, ...]) -> nn.Module:
    """Heads that have no values, or nobody reads."""
    net = net.double().eval()
    into, out = (
        (net.qkv.weight, net.proj)
        if isinstance(net, Copied)
        else (net.attention.in_proj_weight, net.attention.out_proj)
    )
    bias = net.qkv.bias if isinstance(net, Copied) else net.attention.in_proj_bias
    with torch.no_grad():
        bias.normal_()
        for n, head in enumerate(heads):
            rows = slice(32 + 4 * head, 36 + 4 * head)
            if n % 2:
                out.weight[:, 4 * head : 4 * head + 4] = 0
            else:
                into[rows], bias[rows] = 0, 0
    return net


def same(net: nn.Module, small: nn.Module, kind: str) -> bool:
    torch.manual_seed(5)
    for mode in (True, False):
        for batch in (1, 2, 4):
            x, mask = torch.randn(batch, 5, 16).double(), padding(batch, kind)
            if not torch.allclose(net.train(mode)(x, mask), small.train(mode)(x, mask), rtol=0, atol=1e-10):
                return False
    return True


@pytest.mark.parametrize(
    ("need_weights", "positions", "kind"),  # every two of them together
    [
        (False, "", "bool"),
        (False, "bool", "bool"),
        (False, "float", "float"),
        (True, "", "float"),
        (True, "bool", "bool"),
        (True, "float", "float"),
    ],
)
def test_heads_of_multihead_attention_go_beside_a_padding_mask(need_weights: bool, positions: str, kind: str) -> None:
    torch.manual_seed(0)
    net = weakened(Padded(need_weights, positions), (1, 3))
    small, report = compact(net, (X, padding(3, kind)), mode="both")
    assert not report.rolled_back
    assert small.attention.in_proj_weight.shape == (24, 16)
    assert same(net, small, kind)


@pytest.mark.parametrize("how", ["sdpa", "add", "fill"])
def test_heads_of_attention_by_hand_go_with_their_copy_of_the_mask(how: str) -> None:
    torch.manual_seed(0)
    kind = "float" if how == "add" else "bool"
    net = weakened(Copied(how), (0, 2))
    example = (X, padding(3, kind))
    small, report = compact(net, example, mode="both")
    assert not report.rolled_back
    assert small.qkv.weight.shape == (24, 16)
    assert same(net, small, kind)
    assert [row.units for row in groups(net, example).rows if row.coupling == "attention heads"] == [4]


def test_one_head_stays_where_all_are_dead_and_live_ones_stay() -> None:
    torch.manual_seed(0)
    net = weakened(Padded(False, ""), ())
    live, _ = compact(net, (X, padding(3, "bool")))
    assert live.attention.in_proj_weight.shape == (48, 16)
    with torch.no_grad():
        net.attention.out_proj.weight.zero_()
    small, report = compact(net, (X, padding(3, "bool")))
    assert not report.rolled_back
    assert small.attention.in_proj_weight.shape == (3, 16)
    assert same(net, small, "bool")


def test_a_mask_of_its_own_for_each_head_keeps_the_heads() -> None:
    class Own(Copied):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            b, t, _ = x.shape
            q, k, v = (part.view(b, t, 4, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
            slopes = mask[:, None, None, :] * torch.arange(1.0, 5.0, dtype=x.dtype).view(1, 4, 1, 1)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=slopes)
            return x + self.proj(y.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    net = weakened(Own(""), (1,))
    x, mask = X, torch.rand(3, 5).double()
    small, report = compact(net, (x, mask))
    assert not report.rolled_back
    assert small.qkv.weight.shape[0] > 24
    assert torch.allclose(net(x, mask), small(x, mask), rtol=0, atol=1e-10)


def test_an_encoder_layer_with_padding() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 4, 20, batch_first=True, dropout=0.0)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.layer(x, src_key_padding_mask=mask)

    torch.manual_seed(0)
    net = Encoder().double().eval()
    with torch.no_grad():
        net.layer.self_attn.in_proj_weight[36:40] = 0
        net.layer.self_attn.in_proj_bias[36:40] = 0
        net.layer.linear1.weight[3:9] = 0
        net.layer.linear1.bias[3:9] = 0
    small, report = compact(net, (X, padding(3, "bool")))
    assert not report.rolled_back
    assert small.layer.self_attn.out_proj.in_features == 12
    assert small.layer.linear1.out_features == 14
    assert same(net, small, "bool")
