"""torch's encoder layers with gates: in eval mode without gradients they would read the weights and call no layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from paring.core import gates, strip

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


class Encoder(nn.Module):
    """(N, T, 8) and a mask of padding -> (N, T, 8)."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        out: Tensor = self.encoder(x, src_key_padding_mask=padding)
        return out.masked_fill(padding.unsqueeze(-1), 0.0)


def made() -> tuple[Encoder, Any]:
    torch.manual_seed(0)
    padding = torch.tensor([[False] * 4, [False] * 3 + [True]])
    return Encoder().double().eval(), (torch.randn(2, 4, 8).double(), padding)


@pytest.mark.parametrize("at", ["units", "weights:*.linear?"])
def test_eval_mode_shows_the_gates(at: str) -> None:
    net, example = made()
    with torch.no_grad():
        before = net(*example)
    run = pr.attach(net, pr.L0(price=1.0, at=at, start="scratch"), example)
    for number, (_, _, gate) in enumerate(gates(net)):
        open_ = torch.arange(gate.log_alpha.numel()).view(gate.shape) % 2 == number % 2
        gate.log_alpha.data.copy_(torch.where(open_, 9.0, -9.0))
    with torch.no_grad():
        shown = net(*example)
        small = run.finish(early=True)
        torch.testing.assert_close(small(*example), shown)
    assert (shown - before).abs().max() > 1e-3


def test_the_fused_path_comes_back() -> None:
    net, example = made()
    pr.attach(net, pr.L0(price=1.0, at="units"), example)
    assert not any(layer.activation_relu_or_gelu for layer in net.encoder.layers)
    assert not net.encoder.use_nested_tensor
    strip(net)
    assert all(layer.activation_relu_or_gelu == 1 for layer in net.encoder.layers)
    assert net.encoder.use_nested_tensor


def test_a_trained_encoder_gets_smaller() -> None:
    net, (x, padding) = made()
    batches = [(x, padding, torch.randn_like(x)) for _ in range(3)]

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return (net(batch[0], batch[1]) - batch[2]).square().mean()

    small, pruned = pr.prune(net, batches, loss, to=pr.Budget(macs=0.6), epochs=1)
    assert pruned.shares["macs"] <= 0.6
    rows = {row.layers[0]: row.after / row.before for row in pruned.rows}
    assert min(rows.values()) < 1
    assert {name.rpartition(".")[2] for name in rows} == {"in_proj", "linear1"}
    assert small(x, padding).shape == x.shape
