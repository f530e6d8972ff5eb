"""Masks on weights that never move: straight-through gradients, counts, draws."""

from __future__ import annotations

import pytest
import torch

from paring.gates import PopupGate, SupermaskGate


def test_a_drawn_mask_is_binary_and_its_gradient_that_of_the_probability() -> None:
    gate = SupermaskGate((50, 40), dtype=torch.float64)
    gate.logit.data.normal_(0, 2)
    p = torch.sigmoid(gate.logit.detach())
    torch.manual_seed(2)
    mask = gate.train()()
    torch.manual_seed(2)
    assert torch.equal(mask.detach().round(), (torch.rand(50, 40, dtype=torch.float64) < p).double())
    assert float((mask.detach() - mask.detach().round()).abs().max()) < 1e-15
    weight = torch.randn(50, 40, dtype=torch.float64)
    (mask * weight).sum().backward()
    assert gate.logit.grad is not None
    assert float((gate.logit.grad - weight * p * (1 - p)).abs().max()) < 1e-12


def test_rescaled_masks_have_a_mean_of_one() -> None:
    gate = SupermaskGate((8, 10), rescale=True, dtype=torch.float64)
    gate.logit.data.normal_(0, 2)
    for shown in (gate.train()(), gate.eval()(), gate.value()):
        assert shown.mean().item() == pytest.approx(1.0, abs=1e-12)
    gate.logit.data.fill_(-1.0)
    assert bool((gate.value() == 0).all())


def test_at_test_time_the_likelier_value_or_one_draw() -> None:
    gate = SupermaskGate((30, 30))
    assert not bool(gate.support().any()), "no weight is likelier in than out at the start"
    gate.logit.data.normal_(0, 1.5)
    assert torch.equal(gate.support(), torch.sigmoid(gate.logit) > 0.5)
    assert torch.equal(gate.eval()(), gate.value())
    p, state = gate.prob_open().detach(), {k: v.clone() for k, v in gate.state_dict().items()}
    drawn = []
    for seed in (1, 1, 2):
        gate.load_state_dict(state)
        gate.draw(torch.Generator().manual_seed(seed))
        u = torch.rand(30, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert torch.equal(gate.support(), u < p)
        drawn.append(gate.support())
        gate.draw(torch.Generator().manual_seed(9))
        assert torch.equal(gate.support(), drawn[-1]), "what was drawn stays"
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("keep", [0.05, 0.5, 1.0])
def test_the_highest_scores_open(keep: float) -> None:
    torch.manual_seed(0)
    gate = PopupGate((7, 11), keep=keep, dtype=torch.float64)
    bound = (1 / 11) ** 0.5  # Kaiming uniform with a = sqrt 5: sqrt(6 / (6 fan-in))
    assert 0.8 * bound < float(gate.score.detach().abs().max()) <= bound
    mask, size = gate.support(), gate.score.detach().abs()
    assert int(mask.sum()) == round(keep * 77)
    if keep < 1:
        assert size[mask].min() >= size[~mask].max()
    assert torch.equal(gate.train()().detach(), gate.eval()())
    weight = torch.randn(7, 11, dtype=torch.float64)
    (gate.train()() * weight).sum().backward()
    assert gate.score.grad is not None
    assert torch.equal(gate.score.grad, weight * gate.score.detach().sign()), "straight through, closed ones too"
