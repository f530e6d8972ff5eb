"""What is left of an N:M layer is N:M, in every group of every layer, and the function is the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from paring.analysis.input_groups import whole_groups
from paring.removal import compact
from paring.select import NM


def worst(weight: Tensor, m: int) -> int:
    """Most open weights of a group of m inputs, counted one group after the other."""
    moved = (weight.detach() != 0).movedim(1, -1).reshape(-1, weight.shape[1])
    return max(int(moved[:, start : start + m].sum(1).max()) for start in range(0, moved.shape[1], m))


def kill(layer: nn.Module, units: list[int], bias: float) -> None:
    """Units that compute a constant: this bias."""
    with torch.no_grad():
        layer.weight[units] = 0
        layer.bias[units] = bias


def sparsen(net: nn.Module, names: list[str], n: int, m: int) -> None:
    with torch.no_grad():
        for name in names:
            weight = net.get_submodule(name).weight
            weight.mul_(NM(n, m).best(weight.abs()))


class Several(nn.Module):
    """A residual stream, two readers of the same units with groups of different sizes, and a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.inner, self.outer = nn.Conv2d(12, 10, 3, padding=1), nn.Conv2d(10, 12, 3)
        self.skip = nn.Conv2d(12, 12, 3)
        self.flat = nn.Linear(12 * 4, 20)
        self.left, self.right = nn.Linear(20, 7), nn.Linear(20, 6)
        self.end = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x).relu()
        x = (self.outer(self.inner(x).relu()) + self.skip(x)).relu()
        x = self.flat(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)).relu()
        return self.end(self.left(x).relu()), self.right(x)


SIZES = {
    "inner": (2, 4),
    "outer": (1, 3),
    "skip": (2, 4),
    "flat": (2, 4),
    "left": (2, 4),
    "right": (3, 5),
    "end": (1, 2),
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("drop_inputs", [False, True])
def test_random_dead_units_in_front_of_patterns(seed: int, drop_inputs: bool) -> None:
    torch.manual_seed(seed)
    net = Several().double().eval()
    for name, (n, m) in SIZES.items():
        sparsen(net, [name], n, m)
    draw = torch.Generator().manual_seed(seed)
    share = (0.1, 0.5, 0.9)[seed % 3]
    for name in ("stem", "inner", "outer", "skip", "flat", "left"):
        width = len(net.get_submodule(name).weight)
        dead = [unit for unit in range(width - 1) if float(torch.rand(1, generator=draw)) < share]
        together = ("outer", "skip") if name in ("outer", "skip") else (name,)
        for one in together:  # the sum is dead when both are
            kill(net.get_submodule(one), dead, -1.0 if seed % 2 else 0.25)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    before = net(x)
    groups = {name: m for name, (_, m) in SIZES.items()}
    small, report = compact(net, x, input_groups=groups, drop_inputs=drop_inputs)
    assert not report.rolled_back
    for old, new in zip(before, small(x), strict=True):
        assert float((old - new).detach().abs().max()) < 1e-10
    for name, (n, m) in SIZES.items():
        weight = small.get_submodule(name).weight
        assert worst(weight, m) <= n, (name, tuple(weight.shape))
    free, _ = compact(net, x, drop_inputs=drop_inputs)
    count = [sum(p.numel() for p in one.parameters()) for one in (net, small, free)]
    assert count[2] <= count[1] < count[0]


def test_whole_groups_of_dead_inputs_go_and_single_ones_stay_with_the_reason() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    sparsen(net, ["2"], 2, 4)
    kill(net[0], [1, 4, 5, 6, 7, 12, 13, 15], -1.0)
    x = torch.randn(3, 5, dtype=torch.float64)
    small, report = compact(net, x, input_groups={"2": 4})
    assert small[2].weight.shape == (4, 12)
    assert torch.equal(small[2].weight, net[2].weight[:, [*range(4), *range(8, 16)]])
    assert report.rows[0].kept == {"inputs of an N:M layer go in whole groups": 4}
    assert compact(net, x)[0][2].weight.shape == (4, 8)


def test_groups_of_channels_of_a_flattened_map_and_a_shorter_last_group() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 2, 4)).double()
    sparsen(net, ["3"], 2, 4)  # groups: channels 0 and 1, 2 and 3, 4 alone
    kill(net[0], [1, 2, 3, 4], -1.0)
    x = torch.randn(3, 2, 3, 4, dtype=torch.float64)
    small, _ = compact(net, x, input_groups={"3": 4})
    assert small[0].out_channels == 2
    assert float((small(x) - net(x)).detach().abs().max()) < 1e-12


def test_columns_of_constants_are_not_merged_into_one_of_a_pattern() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).double()
    sparsen(net, ["2"], 2, 4)
    kill(net[0], [0, 1, 2, 3, 4], 0.5)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    small, _ = compact(net, x, input_groups={"2": 4})
    assert worst(small[2].weight, 4) <= 2
    assert float((small(x) - net(x)).detach().abs().max()) < 1e-12
    assert any(row.merged for row in compact(net, x)[1].rows), "without the pattern they are"


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="input_groups names 'fc'"):
        compact(nn.Linear(2, 2), torch.ones(1, 2), input_groups={"fc": 4})


def test_only_whole_groups_count() -> None:
    gone = torch.tensor([1, 1, 0, 1, 1, 1, 1], dtype=torch.bool)
    assert whole_groups(gone, 3).tolist() == [False, False, False, True, True, True, True]
    assert whole_groups(gone, 1).tolist() == gone.tolist()
