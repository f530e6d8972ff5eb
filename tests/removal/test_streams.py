"""Dead units of residual streams go through LayerNorm and RMSNorm, with the same function."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from paring import load, pack, save, unpack
from paring.core import FileError, PaddedLayerNorm
from paring.core.padded_layer_norm import pad
from paring.files.file import _digest
from paring.removal import compact
from tests.removal.streams import KINDS, Language, kill, made, trained
from tests.removal.transformers_zoo import GPT, ViT

SOME = settings(
    max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)


def gap(old: Tensor, new: Tensor) -> float:
    return float(((old - new).abs().max() / old.abs().max()).detach())


def dead(width: int, count: int, seed: int) -> Tensor:
    return torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:count]


def of_stream(net: nn.Module, width: int) -> int:
    """How many parameters there are per unit of the stream: widths are drawn so that nothing else is of this size."""
    return sum(p.numel() // width for p in net.parameters() if width in p.shape)


@pytest.mark.parametrize("kind", KINDS)
@SOME
@given(data=st.data())
def test_dead_units_go_from_all_that_writes_and_reads_them(kind: str, data: st.DataObject) -> None:
    width, seed = data.draw(st.integers(14, 19)), data.draw(st.integers(0, 99))
    eps = data.draw(st.sampled_from([1e-12, 1e-5, 0.3]))
    torch.manual_seed(seed)
    net, x = made(kind, width, eps)
    count = data.draw(st.integers(1, width - 1))
    kill(net, dead(width, count, seed))
    small, report = compact(net, x)
    assert report.form == "module"
    assert not report.rolled_back
    before, after = report.parameters
    made_biases = 13 if kind == "layer untied" else 0  # β of what goes, in a head that has none
    assert before - after == count * of_stream(net, width) - made_biases
    assert gap(net(x), small(x)) < 1e-11
    if kind in ("rms", "plain", "shifted", "layer"):
        assert small.head.weight is small.words.weight


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_form_loses_them_as_well(kind: str, tmp_path: Path) -> None:
    """With heads, for which sizes in the forward change; at other batch sizes, and from a file."""
    torch.manual_seed(0)
    net, x = made(kind, 14, 0.3)
    fresh = copy.deepcopy(net)
    kill(net, torch.tensor([0, 3, 4, 9]))
    with torch.no_grad():
        for block in net.blocks:
            block.attention.out.weight[:, :4] = 0
    small, report = compact(net, x, form="graph")
    assert report.form == "graph"
    assert not report.rolled_back
    assert small.blocks[0].attention.out.weight.shape == (10, 4)
    assert all(10 in p.shape or 14 not in p.shape for p in small.parameters())
    save(small, tmp_path / "small.safetensors")
    again = load(fresh, tmp_path / "small.safetensors")
    for batch in (x, torch.cat([x, x, x])):
        assert gap(net(batch), small(batch)) < 1e-11
        assert torch.equal(small(batch), again(batch))


@pytest.mark.parametrize("kind", [ViT, GPT])
def test_where_sizes_are_written_into_the_forward(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = trained(kind(depth=2))
    x = torch.randn(2, 3, 8, 8).double() if kind is ViT else torch.randint(11, (2, 6))
    gone = torch.tensor([0, 5, 6])
    with torch.no_grad():
        for name, module in net.named_modules():
            if isinstance(module, nn.Embedding):
                module.weight[:, gone] = 0
            if name.endswith(("proj", "mlp.2", "patches")):
                module.weight[gone], module.bias[gone] = 0, 0
        for name in ("token", "position"):
            if hasattr(net, name):
                getattr(net, name)[..., gone] = 0
    small, report = compact(net, x)
    assert report.form == "graph"
    assert small.head.weight.shape[1] == 13
    assert gap(net(x), small(x)) < 1e-11


def test_what_is_left_of_rms_norms_is_cut_by_hand() -> None:
    """The same weights as slicing them, with √(d/n) of the scales, in a network built with n units and ε d/n."""
    torch.manual_seed(0)
    d, eps = 14, 0.3
    for kind in ("rms", "plain", "shifted"):
        net, x = made(kind, d, eps)
        gone = dead(d, 4, 1)
        kill(net, gone)
        stay = torch.tensor([i for i in range(d) if i not in gone])
        n = len(stay)
        by_hand = Language(n, kind, eps * d / n).double().eval()
        with torch.no_grad():
            for (name, old), new in zip(net.named_parameters(), by_hand.parameters(), strict=True):
                sliced = old
                for dim, size in enumerate(old.shape):
                    sliced = sliced.index_select(dim, stay) if size == d else sliced
                if "norm" in name:
                    sliced = ((sliced + 1) * (d / n) ** 0.5 - 1) if kind == "shifted" else sliced * (d / n) ** 0.5
                new.copy_(sliced)
        small, _ = compact(net, x)
        assert small.state_dict().keys() == by_hand.state_dict().keys()
        for name, value in by_hand.state_dict().items():
            assert torch.allclose(small.state_dict()[name], value, atol=1e-14, rtol=0), name
        assert gap(net(x), by_hand(x)) < 1e-12


@SOME
@given(st.integers(1, 9), st.integers(0, 5), st.booleans(), st.sampled_from([1e-5, 0.2]))
def test_a_padded_layer_norm_is_one_of_a_padded_input(given_: int, more: int, bias: bool, eps: float) -> None:
    torch.manual_seed(given_)
    norm = PaddedLayerNorm(given_, given_ + more, eps, bias)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    x = torch.randn(3, 4, given_).double() * 3 + 1
    norm = norm.double()
    wide = F.pad(x, (0, more))
    weight = F.pad(norm.weight, (0, more))
    shift = None if norm.bias is None else F.pad(norm.bias, (0, more))
    expected = F.layer_norm(wide, wide.shape[-1:], weight, shift, eps)[..., :given_]
    assert torch.allclose(norm(x), expected, atol=1e-12, rtol=0)
    half = norm.half()(x.half())
    assert half.dtype == torch.float16
    assert torch.allclose(half.double(), expected, atol=0.02, rtol=0.02)
    assert str(norm).endswith(f"padded_to={given_ + more})")


def test_a_padded_layer_norm_has_no_fewer_features_than_all() -> None:
    with pytest.raises(ValueError, match="padded_to is 3, less than the 4 features"):
        PaddedLayerNorm(4, 3)


def test_padded_layer_norms_stay_accurate_far_from_zero() -> None:
    """The variance is not a difference of two large numbers."""
    norm = PaddedLayerNorm(6, 6)
    x = torch.randn(2, 6) + 3000
    assert torch.allclose(norm(x), F.layer_norm(x, (6,)), atol=1e-2, rtol=0)


@pytest.mark.parametrize("kind", ["plain", "rms", "layer", "vit"])
def test_small_networks_are_saved_packed_copied_and_trained(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    net, x = made(kind, 14, 0.3)
    fresh = copy.deepcopy(net)
    kill(net, torch.tensor([2, 5, 6]))
    small, _ = compact(net, x)
    wanted = small(x)
    save(small, tmp_path / "small.safetensors")
    pack(small, tmp_path / "small.pare")
    for source in (fresh, lambda: copy.deepcopy(fresh), small):
        for again in (load(source, tmp_path / "small.safetensors"), unpack(source, tmp_path / "small.pare")):
            assert torch.equal(again.to(torch.float64)(x), wanted)
    twin = copy.deepcopy(small)
    twin.load_state_dict(small.state_dict())
    assert torch.equal(twin(x), wanted)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    before = [p.detach().clone() for p in twin.parameters()]
    twin.train()(x).square().mean().backward()
    optimizer.step()
    for old, (name, new) in zip(before, twin.named_parameters(), strict=True):
        assert not torch.equal(old, new) or name.endswith("k.bias"), name  # a softmax does not see that one
    again, report = compact(twin.eval(), x)
    assert gap(twin(x), again(x)) < 1e-11
    assert report.parameters[0] == report.parameters[1]


def test_the_gradient_is_that_of_the_network_with_zeros() -> None:
    torch.manual_seed(0)
    net, x = made("layer", 14, 0.3)
    kill(net, torch.tensor([2, 5, 6]))
    small, _ = compact(net, x)
    stay = [i for i in range(14) if i not in (2, 5, 6)]
    net(x).square().mean().backward()
    small(x).square().mean().backward()
    assert torch.allclose(net.places.weight.grad[:, stay], small.places.weight.grad, atol=1e-12)
    assert torch.allclose(net.blocks[0].down.weight.grad[stay], small.blocks[0].down.weight.grad, atol=1e-12)


def test_an_optimizer_free_cut_in_place_and_in_train_mode() -> None:
    """Both modes are the same."""
    torch.manual_seed(0)
    net, x = made("layer", 14, 0.3)
    kill(net, torch.tensor([2, 5, 6]))
    net.train()
    before = net(x)
    small, report = compact(net, x, inplace=True)
    assert small is net
    assert report.mode == "both"
    assert net.words.embedding_dim == 11
    assert net.norm.normalized_shape == (11,)
    assert gap(before, net(x)) < 1e-11


class Stem(nn.Module):
    """A layer, a norm over its units, and what reads that."""

    def __init__(self, norm: nn.Module, *readers: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.readers = nn.Linear(3, 8), norm, nn.ModuleList(readers)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.norm(self.first(x))
        return [reader(y) for reader in self.readers]


def stem(norm: nn.Module, *readers: nn.Module) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    net = trained(Stem(norm, *readers))
    with torch.no_grad():
        net.first.weight[[1, 4, 5]] = 0
        net.first.bias[[1, 4, 5]] = 0
    return net, torch.randn(4, 3).double()


def width(small: nn.Module) -> int:
    first: nn.Linear = small.first  # type: ignore[assignment]
    return first.out_features


def same(net: nn.Module, small: nn.Module, x: Tensor) -> bool:
    return all(gap(a, b) < 1e-11 for a, b in zip(net(x), small(x), strict=True))


def test_linear_layers_behind_a_layer_norm_take_over_the_mean() -> None:
    """One with a bias, one without, which gets one, one through a dropout that is off; in train mode that one holds them back."""
    readers = nn.Linear(8, 5), nn.Linear(8, 4, bias=False), nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3))
    net, x = stem(nn.LayerNorm(8), *readers)
    small, _ = compact(net, x)
    assert width(small) == 5
    assert small.readers[1].bias is not None
    assert same(net, small, x)
    small, _ = compact(net, x, mode="both")
    assert width(small) == 8


def test_the_mean_is_not_known_without_all_scales() -> None:
    net, x = stem(nn.LayerNorm(8), nn.Linear(8, 5))
    with torch.no_grad():
        net.norm.weight[0] = 0  # of a unit that is not dead
    small, _ = compact(net, x)
    assert width(small) == 8
    with torch.no_grad():
        net.norm.weight[[1, 4, 5]] = 0  # now the three are constant, and fold
    small, report = compact(net, x)
    assert width(small) == 5
    assert same(net, small, x)
    assert report.rows[0].folded == 3


def test_what_else_reads_the_mean_keeps_the_units() -> None:
    net, x = stem(nn.LayerNorm(8), nn.Linear(8, 5), nn.Sequential(nn.Tanh(), nn.Linear(8, 3)))
    small, _ = compact(net, x)
    assert width(small) == 8


class Subclass(nn.LayerNorm):
    """Not the function that the class says."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input.sin()


class Literal(nn.Module):
    """An ε that nothing but the forward knows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.125) * self.weight


class Bare(nn.Module):
    """No scale that could take √(d/n)."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 0.125

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


@pytest.mark.parametrize(
    "norm",
    [
        Subclass(8),
        Literal(),
        Bare(),
        nn.LayerNorm(8, elementwise_affine=False),
        nn.RMSNorm(8, elementwise_affine=False),
    ],
)
def test_norms_that_cannot_change_keep_all(norm: nn.Module) -> None:
    net, x = stem(norm, nn.Linear(8, 5))
    small, report = compact(net, x)
    assert width(small) == 8
    assert any(reason.startswith("read by") for reason in report.rows[0].kept)
    assert same(net, small, x)


def test_the_epsilon_of_an_rms_norm_that_has_none() -> None:
    """It is torch's for the type of the input: written down, scaled, and in the file."""
    net, x = stem(nn.RMSNorm(8), nn.Linear(8, 5))
    small, _ = compact(net, x)
    assert width(small) == 5
    assert small.norm.eps == pytest.approx(torch.finfo(torch.float64).eps * 8 / 5)
    assert type(small.norm) is nn.RMSNorm
    assert same(net, small, x)


def test_a_norm_that_is_called_twice_loses_what_is_dead_at_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.norm = nn.Linear(3, 8), nn.Linear(8, 8), nn.RMSNorm(8, eps=0.1)
            self.last = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.second(self.norm(self.first(x)))))

    torch.manual_seed(0)
    net, x = trained(Twice()), torch.randn(4, 3).double()
    with torch.no_grad():
        for layer, units in ((net.first, [0, 1, 2]), (net.second, [1, 2, 5])):
            layer.weight[units] = 0
            layer.bias[units] = 0
    small, _ = compact(net, x)
    assert [small.first.out_features, small.second.out_features, *small.norm.normalized_shape] == [6, 6, 6]
    assert gap(net(x), small(x)) < 1e-11


def test_what_a_forward_computes_in_float32_by_name_is_compared_in_float64() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(8)), 0.1

        def forward(self, x: Tensor) -> Tensor:
            y = x.to(torch.float32)
            return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)

    net, x = stem(Single(), nn.Linear(8, 5))
    small, report = compact(net, x)
    assert width(small) == 5
    assert not report.rolled_back
    assert gap(net(x)[0], small(x)[0]) < 1e-6


def test_sixteen_bits() -> None:
    """PaddedLayerNorm under autocast computes in float32, as LayerNorm does."""
    norm = nn.LayerNorm(6)
    x = torch.randn(2, 6).bfloat16()
    twin = copy.deepcopy(norm)
    pad(twin, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(twin(x), norm(x.float()), atol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({"norm.eps": 0.0}, "its numbers make no sense"),
        ({"norm.eps": 1}, "its numbers make no sense"),
        ({"norm.eps": True}, "its numbers make no sense"),
        ({"norm.eps": 1e999}, "is damaged"),
        ([], "its numbers make no sense"),
        ({"norm.training": 0.5}, "has none there"),
        ({"norm.forward": 0.5}, "has none there"),
        ({"first.eps": 0.5}, "has none there"),
    ],
)
def test_a_file_sets_no_other_numbers(tmp_path: Path, numbers: Any, why: str) -> None:
    net, x = stem(nn.RMSNorm(8, eps=0.1), nn.Linear(8, 5))
    file = tmp_path / "small.safetensors"
    save(compact(net, x)[0], file)
    _rewrite(file, {"numbers": numbers})
    with pytest.raises(FileError, match=why):
        load(net, file)


def test_a_file_pads_no_layer_norm_to_less(tmp_path: Path) -> None:
    net, x = stem(nn.LayerNorm(8), nn.Linear(8, 5))
    file = tmp_path / "small.safetensors"
    save(compact(net, x)[0], file)
    _rewrite(file, {"sizes": {"norm.padded_to": 4}})
    with pytest.raises(FileError, match="'norm' has more features than all together"):
        load(net, file)


def _rewrite(file: Path, change: dict[str, Any]) -> None:
    """A file with these parts of its manifest, and a digest that fits."""
    with safetensors.safe_open(file, "pt") as opened:
        manifest = json.loads(opened.metadata()["paring"]) | change
    tensors = load_file(file)
    manifest["digest"], _ = _digest({k: v for k, v in manifest.items() if k != "digest"}, tensors)
    save_file(tensors, file, {"paring": json.dumps(manifest)})


def test_a_tied_head_that_is_called_twice_and_has_a_tied_bias() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.norm = nn.Embedding(11, 8), nn.RMSNorm(8, eps=0.1)
            self.head, self.bias = nn.Linear(8, 11), nn.Parameter(torch.zeros(11))
            self.head.weight, self.head.bias = self.words.weight, self.bias

        def forward(self, ids: Tensor) -> Tensor:
            x = self.words(ids)
            return self.head(x) + self.head(self.norm(x))

    torch.manual_seed(0)
    net, ids = trained(Twice()), torch.randint(11, (2, 5))
    with torch.no_grad():
        net.words.weight[:, [2, 6]] = 0
    small, _ = compact(net, ids)
    assert small.words.embedding_dim == small.head.in_features == 6
    assert small.head.weight is small.words.weight
    assert small.head.bias is small.bias
    assert gap(net(ids), small(ids)) < 1e-11
