"""The moving average and its bias correction."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from paring.train import Ema


def test_average_is_the_weighted_mean_of_what_was_seen() -> None:
    net = nn.Linear(1, 1, bias=False).double()
    ema = Ema(net, 0.9)
    values = [3.0, -1.0, 2.0, 5.0]
    for value in values:
        net.weight.data.fill_(value)
        ema.update()
    weights = [0.1 * 0.9 ** (len(values) - 1 - i) for i in range(len(values))]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    with ema.applied():
        assert net.weight.item() == pytest.approx(expected, rel=1e-12)
    assert net.weight.item() == 5.0


def test_the_first_value_has_no_extra_weight() -> None:
    """A network that never changes has itself as its average after any number of updates."""
    net = nn.BatchNorm1d(3)
    net.running_mean.fill_(0.7)
    ema = Ema(net, 0.999)
    for _ in range(5):
        ema.update()
        with ema.applied():
            assert torch.allclose(net.weight, torch.ones(3))
            assert torch.allclose(net.running_mean, torch.full((3,), 0.7))


def test_frozen_parameters_are_taken_as_they_are() -> None:
    net = nn.Linear(2, 2)
    ema = Ema(net, 0.5)
    ema.update()
    net.bias.data.fill_(4.0)
    net.bias.requires_grad_(False)
    ema.update()
    with ema.applied():
        assert torch.equal(net.bias, torch.full((2,), 4.0))


def test_state_goes_around() -> None:
    net = nn.Linear(2, 2)
    a, b = Ema(net, 0.9), Ema(net, 0.9)
    a.update()
    b.load_state_dict(a.state_dict())
    with a.applied():
        first = net.weight.clone()
    with b.applied():
        assert torch.equal(first, net.weight)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_out_of_range(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        Ema(nn.Linear(1, 1), decay)
