"""The measured mismatch against smoothing by integration, and on networks where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from evidence.hard.flips import each_loss
from evidence.hard.mismatch import mismatches
from paring.hard import STE, GradientRule, SaturatedSTE, Sign, SoftHinge, Staircase


class GaussianRule(GradientRule):
    """The smoothed gradient of a unit whose loss is linear in it, sign: G · 2 N(z; 0, 1/4)."""

    def descend(self, z: Tensor, gradient: Tensor) -> Tensor:
        return gradient * 2 * torch.exp(-2 * z.square()) / math.sqrt(math.pi / 2)


def net_of(unit: nn.Module, hidden: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, hidden), unit, nn.Linear(hidden, 3)).double()


def batch(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (count,), generator=generator)


def linear(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).flatten()


def test_a_linear_loss_and_the_right_rule_have_no_mismatch() -> None:
    x, y = batch()
    (found,) = mismatches(net_of(Sign(GaussianRule())), x, y, losses=linear)
    assert found.layer == "1"
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert found.linear == pytest.approx(1, abs=1e-12)
    assert found.agreement == 1
    assert found.matters == 1
    assert found.pairs == 6 * 40
    (other,) = mismatches(net_of(Sign(STE())), x, y, losses=linear)
    assert other.cosine < 0.95
    assert other.linear == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("unit", [Sign(SoftHinge()), Staircase(3, SaturatedSTE())], ids=str)
def test_against_numerical_smoothing(unit: Sign | Staircase) -> None:
    """L_σ'(x) by the trapezoidal rule over the noise, and the surrogate by autograd."""
    x, y = batch(7)
    net, sigma = net_of(unit, hidden=3), 0.6
    width = sigma if isinstance(unit, Sign) else sigma / 2
    noise = torch.linspace(-6 * width, 6 * width, 20_001, dtype=torch.float64)
    density = torch.exp(-0.5 * (noise / width) ** 2) / (width * math.sqrt(2 * math.pi))
    z = net[0](x).detach()
    truth = torch.zeros_like(z)
    for row in range(7):
        for column in range(3):
            hidden = unit(z[row]).repeat(len(noise), 1)
            hidden[:, column] = unit(z[row, column] + noise)
            losses = each_loss(net[2](hidden), y[row].expand(len(noise))).detach()
            # ∫ L(h(x + ε)) N(ε) dε, differentiated with respect to x: ∫ L ε / σ² N dε
            truth[row, column] = torch.trapezoid(losses * noise / width**2 * density, noise)
    below = z.clone().requires_grad_()
    (surrogate,) = torch.autograd.grad(each_loss(net[2](unit(below)), y).sum(), below)
    expected = float((surrogate * truth).sum() / surrogate.norm() / truth.norm())
    (found,) = mismatches(net, x, y, sigma=sigma)
    assert found.cosine == pytest.approx(expected, abs=2e-3)


def test_agreement_counts_better_targets() -> None:
    x, y = batch()
    net = net_of(Sign())
    (found,) = mismatches(net, x, y)
    h = net[1](net[0](x)).detach().requires_grad_()
    (g,) = torch.autograd.grad(each_loss(net[2](h), y).sum(), h)
    right = []
    for unit in range(6):
        up, down = h.detach().clone(), h.detach().clone()
        up[:, unit], down[:, unit] = 1.0, -1.0
        better = torch.where(each_loss(net[2](up), y) < each_loss(net[2](down), y), 1.0, -1.0)
        right.append(torch.sign(-g[:, unit]) == better)
    assert found.agreement == pytest.approx(float(torch.stack(right).double().mean()), abs=1e-12)
    assert 0.5 < found.agreement <= 1


def test_convolutions_norms_and_modes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), Sign(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 5), Staircase(),
        nn.Dropout(0.5), nn.Linear(5, 2),
    )  # fmt: skip
    net[7].eval()
    modes = [m.training for m in net.modules()]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = mismatches(net, torch.randn(6, 1, 8, 8), torch.randint(2, (6,)), units=10)
    assert [one.layer for one in found] == ["2", "6"]
    assert [one.pairs for one in found] == [60, 30]
    assert 0 < found[0].matters < 1  # of a pool of four, three may change nothing
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert mismatches(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.randn(2, 2), torch.tensor([0, 1])) == []


def test_refusals() -> None:
    x, y = batch()
    unit = Sign()
    shared = nn.Sequential(nn.Linear(4, 4), unit, nn.Linear(4, 4), unit, nn.Linear(4, 3)).double()
    with pytest.raises(ValueError, match="runs 2 times"):
        mismatches(shared, x, y)
    for options in ({"sigma": 0.0}, {"units": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            mismatches(net_of(Sign()), x, y, **options)  # type: ignore[arg-type]
