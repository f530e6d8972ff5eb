"""Edges agree with the modules at every input, also one float32 away from where they jump."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from paring.bits.edges import LARGEST_KEY, Chain, Code, code_of, find, floats, intervals
from paring.hard import SaturatedReLU, Sign, Staircase
from paring.hard.gradient_rules import STE
from paring.hard.learned_step import LearnedStep
from tests.reference.bits import lively

C = 12
UNITS = {
    "sign": lambda: Sign(),
    "one step": lambda: Staircase(1),
    "2 bits": lambda: Staircase(3, STE()),
    "3 bits": lambda: Staircase(5),
    "learned": lambda: LearnedStep(3),
}
CHAINS = {
    "unit": lambda: (),
    "norm": lambda: (nn.BatchNorm2d(C),),
    "norm, hardtanh": lambda: (nn.BatchNorm2d(C), nn.Hardtanh()),
    "relu, norm, leaky": lambda: (nn.ReLU(), nn.BatchNorm2d(C), nn.Dropout(), nn.LeakyReLU(0.1)),
    "two norms": lambda: (nn.BatchNorm2d(C), SaturatedReLU(), nn.BatchNorm2d(C)),
}


def chain_of(name: str, unit: str) -> Chain:
    net = nn.Sequential(*CHAINS[name](), UNITS[unit]())
    return Chain(list(lively(net)), C, False)


def levels(chain: Chain, values: Tensor) -> Tensor:
    """(m, C) values -> (m, C) levels, by the modules on a whole batch."""
    x = values[:, :, None, None].contiguous()
    for module in chain.modules:
        x = module(x)
    return chain.code.level(x.detach()).reshape(values.shape)


def test_floats_are_in_order() -> None:
    assert floats(torch.tensor([0, 1, -1, LARGEST_KEY])).tolist() == [
        0.0,
        2.0**-149,
        -(2.0**-149),
        torch.finfo(torch.float32).max,
    ]
    keys = torch.randint(-LARGEST_KEY, LARGEST_KEY, (1000,))
    values = floats(keys)
    assert torch.equal(torch.nextafter(values, torch.tensor(torch.inf)), floats(keys + 1))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", CHAINS)
def test_intervals_hold_for_every_float(name: str, unit: str) -> None:
    chain = chain_of(name, unit)
    low, high = intervals(chain)
    jumps = torch.where(low.isfinite(), low, torch.where(high.isfinite(), high, torch.zeros(())))
    near = [jumps]
    for _ in range(3):
        near += [torch.nextafter(near[-1], torch.tensor(torch.inf))]
    for _ in range(3):
        near += [torch.nextafter(near[0], torch.tensor(-torch.inf)), *near]
    values = torch.cat([*near, 10 * torch.randn(200, C), 1e-3 * torch.randn(50, C), torch.zeros(1, C)])
    for plane in range(chain.code.planes):
        found = (values >= low[plane]) & (values <= high[plane])
        assert torch.equal(found, levels(chain, values) > plane)
    if name == "norm":
        assert bool((high.isfinite() & ~low.isfinite()).any()), "the example holds channels that fall"


@given(st.sampled_from(list(CHAINS)), st.sampled_from(list(UNITS)), st.integers(1, 200), st.integers(0, 2**31))
def test_whole_edges_hold_for_every_sum(name: str, unit: str, limit: int, seed: int) -> None:
    torch.manual_seed(seed)
    chain = chain_of(name, unit)
    factor, shift = torch.rand(C).double() + 0.1, torch.randn(C).double()
    found = find(chain, lambda n: (factor * n + shift).float(), limit)
    n = torch.arange(-limit, limit + 1)[:, None].expand(-1, C)
    expected = levels(chain, (factor * n + shift).float())
    side = torch.where(found.falling, -n, n)
    for plane in range(chain.code.planes):
        assert torch.equal(side >= found.edges[plane], expected > plane)


def test_constant_channels_never_or_always_cross() -> None:
    norm = nn.BatchNorm2d(C).eval()
    nn.init.zeros_(norm.weight)
    norm.bias.data = torch.arange(C) - 5.0
    low, high = intervals(Chain([norm, Sign()], C, False))
    x = torch.tensor([-1e30, 0.0, 1e30])[:, None]
    assert torch.equal((x >= low) & (x <= high), (norm.bias > 0).expand(3, 1, C)[:, 0])


@pytest.mark.parametrize("steps", range(1, 17))
def test_codes_give_back_the_values_of_units(steps: int) -> None:
    for unit in (Staircase(steps), LearnedStep(steps)):
        if isinstance(unit, LearnedStep):
            unit.step.data.fill_(0.0371)
        code = code_of(unit)
        assert code is not None
        values = unit(torch.linspace(-1, 2, 9999)[:, None]).detach()
        assert torch.equal(torch.tensor(code.values), values.unique())
        assert torch.equal(torch.tensor(code.values)[code.level(values)], values)
        assert code.planes == steps
        assert torch.allclose(torch.tensor(code.values), code.size * torch.arange(steps + 1))


def test_the_sign_has_one_plane() -> None:
    assert code_of(Sign()) == Code((-1.0, 1.0))
    assert code_of(nn.ReLU()) is None
