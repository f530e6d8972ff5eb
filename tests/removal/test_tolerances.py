"""The one comparison: every tolerance is pinned from both sides, and a NaN is called one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from paring.removal.plan import Fold, ShrinkPlan
from paring.removal.tolerances import differs, gap, one_path, refuse_nan
from paring.removal.verify import verify

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16


def moved(by: float, dtype: torch.dtype, scale: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of this largest magnitude, and the same with one entry off by this part of it."""
    old = torch.tensor([1.0, 0.5, -0.25], dtype=dtype) * scale
    return [old], [old + torch.tensor([0.0, by * scale, 0.0], dtype=dtype)]


@pytest.mark.parametrize(
    ("dtype", "passes", "fails"), [(F64, 7e-11, 1.5e-10), (F32, 7e-6, 1.5e-5), (F16, 0.01, 0.03), (BF16, 0.1, 0.2)]
)
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e-3])
def test_tolerance_of_each_type(dtype: torch.dtype, passes: float, fails: float, scale: float) -> None:
    assert not differs(*moved(passes, dtype, scale), dtype)
    assert "outputs differ by" in str(differs(*moved(fails, dtype, scale), dtype))


def test_the_old_network_s_own_rounding_counts_four_times_but_never_in_float64() -> None:
    old, new = moved(1e-3, F32)
    assert not differs(old, new, F32, lambda: 2.6e-4)
    assert differs(old, new, F32, lambda: 2.4e-4)
    assert differs(*moved(1e-3, F64), F64, lambda: 1.0)
    assert not differs(*moved(1e-6, F32), F32, lambda: 1 / 0)  # asked for only where it matters  # type: ignore[arg-type]


def test_the_coarser_type_of_computation_and_output_counts() -> None:
    old, new = moved(5e-6, F32)
    assert not differs(old, new, F64)  # a forward that ends in .float()
    assert not differs([old[0].double()], [new[0].double()], F32)  # one that ends in .double()
    assert differs([torch.tensor([10**6])], [torch.tensor([10**6 + 1])], F32), "indices have no rounding"
    assert not differs([torch.tensor([1 + 1j])], [torch.tensor([1 + 1j])], F32)
    assert not differs([torch.tensor([1 + 1j])], [torch.tensor([1 + 1.000001j])], F32)
    assert differs([torch.tensor([1 + 1j])], [torch.tensor([1 + 1.1j])], F32)


def test_large_constants_and_tiny_outputs() -> None:
    mask = torch.tensor([1.0, -1e9])
    assert gap([mask], [mask + torch.tensor([0.1, 0.0])]) == pytest.approx(1e-3, rel=1e-3)  # as if the mask were 100
    assert gap([torch.zeros(2, dtype=F64)], [torch.full((2,), 1e-16, dtype=F64)]) == pytest.approx(1e-11)
    assert gap([torch.full((2,), 1e-9, dtype=F64)], [torch.full((2,), 2e-9, dtype=F64)]) == pytest.approx(1e-4)
    assert gap([torch.zeros(0)], [torch.zeros(0)]) == 0


def test_what_is_not_finite_has_to_be_the_same_in_the_same_place() -> None:
    nan, inf = torch.nan, torch.inf
    old = [torch.tensor([1.0, nan, inf, -inf])]
    assert gap(old, [old[0].clone()]) == 0
    for other in ([1.0, nan, inf, inf], [1.0, inf, inf, -inf], [1.0, 0.0, inf, -inf], [nan, nan, inf, -inf]):
        assert gap(old, [torch.tensor(other)]) == inf
        assert "NaN or infinite in other places" in str(differs(old, [torch.tensor(other)], F32))
    assert gap(old, [old[0][:3]]) == gap(old, []) == inf
    assert "other shapes" in str(differs(old, [old[0][:3]], F32))


class Rounding(nn.Module):
    """Loses what is below 1e-3 or so in float32, and nothing in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.shift = nn.Linear(4, 3), 0.0

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = (self.a(x) + 3e4) - 3e4 + self.shift
        return found


def fold(name: str, amount: Tensor) -> ShrinkPlan:
    return ShrinkPlan(cuts=(), folds=(Fold(name, amount.double()),), selects={}, rows=())


@pytest.mark.parametrize(("amount", "seen"), [(1e-9, True), (3e-10, True), (3e-11, False)])
def test_a_plan_with_one_small_fold_on_a_bias(amount: float, seen: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        net[2].bias.copy_(torch.tensor([1.0, -1.0, 0.5]))
    problem = verify(net, fold("2.bias", torch.tensor([amount, 0, 0])), torch.randn(4, 4))
    assert (problem is not None and problem.reason.startswith("outputs differ by")) == seen
    assert (problem is not None) == seen


@pytest.mark.parametrize(("factor", "seen"), [(2.0, False), (12.0, True)])
def test_float32_is_allowed_a_few_times_its_own_rounding(factor: float, seen: bool) -> None:
    torch.manual_seed(0)
    net, x = Rounding().eval(), torch.randn(8, 4)
    own = gap([copy.deepcopy(net).double()(x.double())], [net(x)])
    assert own > 1e-4

    def make(part: nn.Module) -> nn.Module:
        part = copy.deepcopy(part)
        if part.a.weight.dtype == F32:
            part.shift = factor * own * float(net(x).abs().max())
        return part

    problem = verify(net, fold("a.bias", torch.zeros(3)), x, make=make)
    assert ("in float32" in str(problem)) == seen


def test_a_nan_is_called_one_with_its_name() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16, 2)).eval()
    x = torch.ones(2, 3, 3, 3)
    with torch.no_grad():
        net[1].weight[8:], net[1].bias[8:] = 0, 0
        net[0].weight.view(-1)[[1, 5, 9]] = torch.nan
    with pytest.raises(ValueError, match=r"weight '0.weight' of this Sequential holds NaN in 3 of 432 entries"):
        pr.compact(net, x)
    with torch.no_grad():
        net[0].weight.fill_(0.1)
    net[1].running_var[2] = torch.nan
    with pytest.raises(ValueError, match=r"buffer '1.running_var' .* NaN in 1 of 16"):
        pr.compact(net, x)


class Log(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.b(self.a(x).relu()) + x.log().sum(-1, keepdim=True)
        return found


def test_outputs_that_are_nan_everywhere_are_no_comparison_and_here_and_there_they_are() -> None:
    net, x = Log().eval(), torch.rand(4, 4) + 0.1
    with torch.no_grad():
        net.a.weight[:2], net.a.bias[:2] = 0, 0
    with pytest.raises(ValueError, match="own output is NaN on the example in all of its 12 entries"):
        pr.compact(net, -x)
    x[1] *= -1
    assert pr.compact(net, x)[0].a.out_features == 4
    refuse_nan(net, [net(x)])
    refuse_nan(net, [torch.zeros(0), torch.zeros(2, dtype=torch.int64)])
    with pytest.raises(ValueError, match="own output is infinite"):
        refuse_nan(net, [torch.full((2,), torch.inf)])


def test_a_nan_weight_is_blamed_for_outputs_that_hold_nan_and_for_no_others() -> None:
    net, nan, inf = Log(), torch.nan, torch.inf
    with torch.no_grad():
        net.a.bias[0] = nan
    refuse_nan(net, [torch.ones(2)])
    refuse_nan(net, [torch.tensor([1.0, inf])])
    with pytest.raises(ValueError, match=r"weight 'a.bias'"):
        refuse_nan(net, [torch.tensor([1.0, nan]), torch.tensor([1.0, inf])])


@one_path()
def interrupted() -> None:
    assert not torch.backends.mha.get_fastpath_enabled()
    raise ZeroDivisionError


@pytest.mark.parametrize("before", [True, False])
def test_attention_takes_one_path_meanwhile_and_the_setting_is_put_back(before: bool) -> None:
    mha = torch.backends.mha
    was = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(before)
    try:
        with pytest.raises(ZeroDivisionError):
            interrupted()
        assert mha.get_fastpath_enabled() == before
    finally:
        mha.set_fastpath_enabled(was)


def test_complex_outputs_that_are_nan_are_refused() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x) * torch.nan

    net = Spectrum()
    with pytest.raises(ValueError, match="NaN"):
        refuse_nan(net, [net(torch.randn(2, 8))])
