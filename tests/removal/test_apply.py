"""A plan made by hand is carried out to the letter: values, gradients, sizes of layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paring.core import SelectLinear
from paring.removal.apply import apply
from paring.removal.plan import Cut, Fold, Merge, ShrinkPlan


def plan(*cuts: tuple[str, int, list[int]], **more: Any) -> ShrinkPlan:
    return ShrinkPlan(
        tuple(Cut(name, dim, torch.tensor(keep)) for name, dim, keep in cuts),
        **{"folds": (), "selects": {}, "rows": (), **more},
    )


@pytest.mark.parametrize(
    ("layer", "cuts", "sizes"),
    [
        (nn.Linear(6, 5), [("weight", 0, [0, 2]), ("weight", 1, [1, 3, 5])], {"out_features": 2, "in_features": 3}),
        (nn.Embedding(7, 5), [("weight", 1, [0, 4])], {"num_embeddings": 7, "embedding_dim": 2}),
        (nn.Conv2d(6, 5, 3), [("weight", 0, [1]), ("weight", 1, [0, 2])], {"out_channels": 1, "in_channels": 2}),
        (
            nn.Conv1d(6, 9, 3, groups=3),
            [("weight", 0, [0, 1, 2, 6, 7, 8])],
            {"groups": 2, "in_channels": 4, "out_channels": 6},
        ),
        (nn.Conv3d(6, 9, 1, groups=3), [("weight", 0, [3, 4, 5])], {"groups": 1, "in_channels": 2, "out_channels": 3}),
        (nn.Conv2d(4, 4, 3, groups=4), [("weight", 0, [0, 3])], {"groups": 2, "in_channels": 2, "out_channels": 2}),
        (
            nn.ConvTranspose2d(6, 5, 3),
            [("weight", 1, [1]), ("weight", 0, [0, 2])],
            {"out_channels": 1, "in_channels": 2},
        ),
        (
            nn.ConvTranspose1d(6, 9, 3, groups=3),
            [("weight", 0, [0, 1, 4, 5])],
            {"groups": 2, "in_channels": 4, "out_channels": 6},
        ),
        (nn.Conv2d(4, 4, 1, groups=2), [("weight", 0, [2, 3])], {"groups": 1, "in_channels": 2, "out_channels": 2}),
        (
            nn.ConvTranspose3d(4, 4, 1, groups=2),
            [("weight", 0, [0, 1])],
            {"groups": 1, "in_channels": 2, "out_channels": 2},
        ),
        (nn.BatchNorm2d(4), [("weight", 0, [1, 3])], {"num_features": 2}),
        (nn.BatchNorm1d(4, affine=False), [("running_mean", 0, [1, 2, 3])], {"num_features": 3}),
        (nn.GroupNorm(3, 12), [("weight", 0, list(range(4, 12)))], {"num_groups": 2, "num_channels": 8}),
        (nn.PReLU(4), [("weight", 0, [2])], {"num_parameters": 1}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_sizes_follow_the_tensors(
    layer: nn.Module, cuts: list[tuple[str, int, list[int]]], sizes: dict[str, int]
) -> None:
    names = [name for name, _ in layer.named_parameters()]
    net = nn.Sequential(nn.Identity(), layer)
    wanted = dict(layer.state_dict())
    for name, dim, keep in cuts:
        wanted[name] = wanted[name].index_select(dim, torch.tensor(keep))
    assert apply(net, plan(*((f"1.{name}", dim, keep) for name, dim, keep in cuts))) is net
    assert {name: getattr(layer, name) for name in sizes} == sizes
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in layer.state_dict().items())
    assert [name for name, _ in layer.named_parameters()] == names


def test_norms_without_any_tensor_get_their_size() -> None:
    net = nn.Sequential(nn.InstanceNorm2d(6))
    apply(net, plan(sizes={"0": 4}))
    assert net[0].num_features == 4


@pytest.mark.parametrize("trained", [False, True])
def test_a_cut_parameter_keeps_its_gradient_and_what_is_noted_on_it(trained: bool) -> None:
    net = nn.Sequential(nn.Linear(3, 4, dtype=torch.bfloat16))
    weight, bias = net[0].weight, net[0].bias.requires_grad_(trained)
    weight.mark = "of mine"
    weight.grad = torch.arange(12.0).view(4, 3).bfloat16()
    apply(net, plan(("0.weight", 0, [1, 3]), ("0.weight", 1, [0, 2]), ("0.bias", 0, [1, 3])))
    assert net[0].weight.grad.tolist() == [[3, 5], [9, 11]]
    assert net[0].weight.mark == "of mine"
    assert net[0].weight.requires_grad
    assert net[0].bias.requires_grad == trained
    assert net[0].bias.grad is None
    assert torch.equal(net[0].bias, bias[[1, 3]])
    assert net[0].weight.dtype == torch.bfloat16


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folds_are_added_and_make_a_bias_where_there_is_none(trained: bool, dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2), nn.BatchNorm1d(2)).to(dtype)
    net[0].weight.requires_grad_(trained)
    before = net[1].bias.clone()
    amount = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    folds = (Fold("0.bias", amount), Fold("1.bias", amount[:2]), Fold("2.running_mean", -amount[:2]))
    apply(net, plan(("0.bias", 0, [0, 2]), folds=folds, scales=(Fold("2.running_mean", 3 * amount[:2]),)))
    assert net[0].bias.tolist() == [1, 3]
    assert net[0].bias.dtype == dtype
    assert net[0].bias.requires_grad == trained
    assert torch.equal(net[1].bias, before + amount[:2].to(dtype))
    assert net[1].bias.requires_grad
    assert net[2].running_mean.tolist() == [2, 4]
    assert not isinstance(net[2].running_mean, nn.Parameter)


@pytest.mark.parametrize("dim", [0, 1])
def test_merges_add_the_others_times_their_factors(dim: int) -> None:
    net = nn.Sequential(nn.Conv1d(4, 4, 2))
    slices = net[0].weight.detach().clone().movedim(dim, 0)
    merge = Merge("0.weight", dim, 2, torch.tensor([0, 3]), torch.tensor([0.5, -4.0], dtype=torch.float64))
    apply(net, plan(("0.weight", dim, [1, 2]), merges=(merge,)))
    left = net[0].weight.detach().movedim(dim, 0)
    assert torch.equal(left[0], slices[1])
    assert torch.allclose(left[1], slices[2] + 0.5 * slices[0] - 4 * slices[3])


def test_selected_columns_of_selected_columns() -> None:
    net, x = nn.Sequential(nn.Linear(6, 2)), torch.randn(3, 6)
    weight, bias = net[0].weight.detach().clone(), net[0].bias.detach()

    def read(columns: list[int]) -> Tensor:
        return x[:, columns] @ weight[:, columns].T + bias

    apply(net, plan(("0.weight", 1, [1, 3, 4]), selects={"0": torch.tensor([1, 3, 4])}))
    assert type(net[0]) is SelectLinear
    assert torch.allclose(net(x), read([1, 3, 4]))
    apply(net, plan(("0.weight", 1, [0, 2]), selects={"0": torch.tensor([0, 2])}))
    assert net[0].reads.tolist() == [1, 4]
    assert (net[0].in_features, net[0].out_features) == (2, 2)
    assert torch.allclose(net(x), read([1, 4]))


def test_an_empty_plan_changes_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = dict(net.named_parameters())
    apply(net, plan())
    assert all(value is before[name] for name, value in net.named_parameters())
    assert not plan()
    assert plan(("0.weight", 0, [1]))
