"""Gates of half-precision networks draw their noise in float32: their probabilities are those of the formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from paring.core import Gate, put
from paring.gates import DropoutGate, GaussianGate, PopupGate, StochasticGate, SupermaskGate
from paring.gates.relax import HardConcrete, RectifiedGaussian, Relaxation, StraightThroughBernoulli

DRAWS = 400_000
HALF = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    ("relaxation", "log_alpha", "ends"),
    [
        (HardConcrete(clamp=None), -4.6, (lambda z: z != 0, lambda z: z == 1)),
        (HardConcrete(clamp=None), 4.6, (lambda z: z != 1, lambda z: z == 0)),
        (StraightThroughBernoulli(), -6.0, (lambda z: z != 0,)),
        (RectifiedGaussian(), -1.4, (lambda z: z != 0,)),
    ],
    ids=["hard concrete, low", "hard concrete, high", "bernoulli", "gaussian"],
)
def test_rare_values_are_as_rare_as_in_single_precision(
    dtype: torch.dtype, relaxation: Relaxation, log_alpha: float, ends: tuple
) -> None:
    """At log alpha = -4.6 a hard concrete gate is one with probability 0.0020."""
    shares = {}
    for kind in (dtype, torch.float32):
        gate = StochasticGate(relaxation, (DRAWS,), spread=0.0, dtype=kind)
        gate.log_alpha.data.fill_(log_alpha)
        torch.manual_seed(0)
        shown = gate.train()()
        assert shown.dtype == kind
        shares[kind] = [float(end(shown).double().mean()) for end in ends]
    for half, single in zip(shares[dtype], shares[torch.float32], strict=True):
        assert 0 < single < 0.06
        assert half == pytest.approx(single, rel=0.12), shares  # values near an end are rounded to it


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_supermasks_of_small_probability_are_drawn(dtype: torch.dtype) -> None:
    gate = SupermaskGate((DRAWS,), dtype=dtype)
    gate.logit.data.fill_(-6.5)
    torch.manual_seed(0)
    assert float((gate.train()() != 0).double().mean()) == pytest.approx(0.0015, rel=0.1)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_drops_are_finite_and_as_many_as_asked(dtype: torch.dtype) -> None:
    gate = DropoutGate(DRAWS, p=0.004, temperature=0.01, dtype=dtype)
    torch.manual_seed(0)
    shown = gate.train()()
    assert shown.dtype == dtype
    assert bool(shown.isfinite().all())
    assert float((shown < 0.5).double().mean()) == pytest.approx(0.004, rel=0.1)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_gaussian_noise_of_outputs_has_tails(dtype: torch.dtype) -> None:
    """Drawn in bfloat16, no normal number would lie beyond 3.4."""
    layer = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.zeros_(layer.weight)
    put(layer, "weights", GaussianGate(layer.weight, log_sigma2=0.0))
    torch.manual_seed(0)
    out = layer.train()(torch.ones(DRAWS, 1, dtype=dtype)).detach().double()
    assert out.std().item() == pytest.approx(1.0, abs=0.01)
    assert float((out.abs() > 3.29).double().mean()) == pytest.approx(0.001, rel=0.2)
    assert float(out.abs().max()) > 4


def test_initial_noise_is_drawn_in_single_precision_too() -> None:
    for make in (
        lambda dtype: StochasticGate(HardConcrete(), (50,), spread=1.0, dtype=dtype).log_alpha,
        lambda dtype: PopupGate((10, 5), keep=0.5, dtype=dtype).score,
    ):
        torch.manual_seed(1)
        half = make(torch.bfloat16)
        torch.manual_seed(1)
        assert torch.equal(half, make(torch.float32).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_single_and_double_precision_draw_in_their_own_type(dtype: torch.dtype) -> None:
    gates: list[Gate] = [StochasticGate(HardConcrete(), (5,), dtype=dtype), SupermaskGate((5,), dtype=dtype)]
    for gate in gates:
        torch.manual_seed(4)
        gate.train()()
        after = torch.rand(1)
        torch.manual_seed(4)
        torch.rand(5, dtype=dtype)
        assert torch.equal(after, torch.rand(1))
