"""What verification has to see: differences beside large constants, at other lengths, in train mode; and refusals at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import paring as pr
from paring.analysis import CaptureError
from paring.removal import compact
from paring.removal.plan import Fold, ShrinkPlan
from paring.removal.verify import verify


def kill(layer: nn.Module, count: int, constant: float = 0.0) -> None:
    with torch.no_grad():
        layer.weight[:count] = 0  # type: ignore[index]
        layer.bias[:count] = constant  # type: ignore[index]


class Masked(nn.Module):
    """Scores scaled by a width that is read at run time; actions that are not allowed score -1e9."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(5, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.a(x).relu()
        return (self.o(h) / h.shape[-1] ** 0.5).masked_fill(mask, -1e9)


def test_large_constants_in_the_output_hide_nothing() -> None:
    torch.manual_seed(0)
    net, x, mask = Masked().eval(), torch.randn(4, 5), torch.rand(4, 6) < 0.5
    kill(net.a, 8)
    small, _ = compact(net, (x, mask))
    assert (net(x, mask) - small(x, mask))[~mask].abs().max() < 1e-6


class Pooled(nn.Module):
    """A sum over the elements of a set."""

    def __init__(self, phi: nn.Module, last: int, dim: int) -> None:
        super().__init__()
        self.phi, self.out, self.dim = phi, nn.Linear(last, 2), dim

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.phi(x).relu().sum(self.dim))
        return found


@pytest.mark.parametrize("kind", ["set", "signal"])
def test_sums_over_positions_are_not_folded_for_one_length_alone(kind: str) -> None:
    torch.manual_seed(0)
    phi, dim, shape = (nn.Linear(3, 16), 1, (4, 10, 3)) if kind == "set" else (nn.Conv1d(3, 16, 3), -1, (4, 3, 10))
    net = Pooled(phi, 16, dim).eval()
    kill(phi, 8, 0.5)
    small, report = compact(net, torch.randn(shape), form="module")
    longer = torch.randn(*(2 * n if d == dim % 3 else n for d, n in enumerate(shape)))
    assert torch.allclose(net(longer), small(longer), atol=1e-5)
    assert report.rolled_back


class Auxiliary(nn.Module):
    """Another head in train mode, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop, self.o, self.aux = nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = self.a(x).relu()
        return (self.o(self.drop(h)), self.aux(h)) if self.training else self.o(h)


def test_train_mode_is_checked_though_there_is_dropout() -> None:
    net = Auxiliary().eval()
    with torch.no_grad():
        net.o.weight[:, :4] = 0
    small, _ = pr.compact(net, torch.randn(4, 5), mode="both")
    a, b = (one.train() for one in (net, small))
    for part in (a.drop, b.drop):
        part.eval()
    x = torch.randn(4, 5)
    for one, other in zip(a(x), b(x), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_dropout_that_is_on_in_eval_mode_is_noise() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    kill(net[0], 4, 1.0)
    net.eval()
    net[2].train()
    small, _ = pr.compact(net, torch.randn(4, 4))
    assert small[0].out_features == 8
    assert pr.compact(net.eval(), torch.randn(4, 4))[0][0].out_features == 4


class Variational(nn.Module):
    """Draws its code in eval mode too, as autoencoders are often written."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mean, self.spread, self.b, self.c = (
            nn.Linear(*sizes) for sizes in ((5, 8), (8, 3), (8, 3), (3, 8), (8, 5))
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).relu()
        mean = self.mean(hidden)
        found: Tensor = self.c(self.b(mean + torch.randn_like(mean) * self.spread(hidden).exp()).relu())
        return found


def test_noise_of_the_network_is_the_same_on_both_sides() -> None:
    torch.manual_seed(0)
    net, x = Variational().eval(), torch.randn(4, 5)
    kill(net.a, 3, 0.0)
    kill(net.b, 2, 0.5)
    small, _ = pr.compact(net, x)
    assert (small.a.out_features, small.b.out_features) == (5, 6)
    told = []
    for one in (net, small):
        torch.manual_seed(1)
        told.append(one(x))
    assert torch.allclose(*told, atol=1e-6)


class Fourier(nn.Module):
    """Weights of complex numbers, as networks of Fourier modes have them."""

    def __init__(self) -> None:
        super().__init__()
        self.modes = nn.Parameter(torch.randn(5, dtype=torch.cfloat))
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.b(self.a(torch.fft.irfft(torch.fft.rfft(x) * self.modes)).relu())
        return found


def test_complex_weights_keep_both_parts() -> None:
    torch.manual_seed(0)
    net, x = Fourier().eval(), torch.randn(4, 8)
    kill(net.a, 2)
    small, report = pr.compact(net, x)
    assert small.a.out_features == 4
    assert not report.rolled_back
    assert small.modes.dtype == torch.cfloat
    assert torch.allclose(small(x), net(x), atol=1e-5)


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.d = parametrizations.spectral_norm(nn.Linear(5, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.d(self.b(x).relu())
        return found


def test_spectral_norms_stand_still_while_looked_at(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Spectral(), torch.randn(4, 5)
    with torch.no_grad():
        net.b.parametrizations.weight.original.normal_()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    small, _ = pr.compact(net, x)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.b.parametrizations.weight.training
    assert small.b.parametrizations.weight.training
    pr.save(net.eval(), tmp_path / "a.safetensors")
    loaded = pr.load(Spectral, tmp_path / "a.safetensors")
    assert not loaded.b.parametrizations.weight.training
    assert torch.equal(loaded(x), net(x))
    pr.pack(net, tmp_path / "a.pare")
    assert torch.equal(pr.unpack(Spectral, tmp_path / "a.pare")(x), net(x))


def test_a_single_example_without_a_batch() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    kill(net[0], 4, 0.3)
    small, x = pr.compact(net, torch.randn(5))[0], torch.randn(5)
    assert small[0].out_features == 4
    assert torch.allclose(net(x), small(x), atol=1e-6)


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.o(self.b(self.a(x).relu()).relu() * x.max().item())
        return found


def test_numbers_read_from_tensors_are_barriers() -> None:
    net = Scalar().eval()
    kill(net.a, 4)
    small, x = pr.compact(net, torch.randn(4, 5))[0], torch.randn(4, 5)
    assert small.a.out_features == 4
    assert torch.allclose(net(x), small(x), atol=1e-6)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.m, self.o = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.o(self.m(x, y, y, need_weights=False)[0])
        return found


def test_attention_with_a_smaller_output_loads_again(tmp_path: Path) -> None:
    net, given = Attending().eval(), (torch.randn(4, 3, 8), torch.randn(4, 6, 8))
    kill(net.m.out_proj, 0)
    with torch.no_grad():
        net.m.out_proj.weight[4:], net.m.out_proj.bias[4:] = 0, 0
    small, _ = pr.compact(net, given)
    assert small.m.out_proj.weight.shape == (4, 8)
    pr.save(small, tmp_path / "a.safetensors")
    assert torch.equal(pr.load(Attending, tmp_path / "a.safetensors").eval()(*given), small(*given))


def test_what_cannot_be_looked_at_is_said() -> None:
    pruned = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    prune.ln_structured(pruned[0], "weight", 0.5, 2, 0)
    with pytest.raises(CaptureError, match=r"weight of '0' .*prune.remove"):
        pr.compact(pruned, torch.randn(4, 5), inplace=True)
    prune.remove(pruned[0], "weight")
    with torch.no_grad():
        pruned[0].bias.masked_fill_(~pruned[0].weight.any(1), 0.0)
    assert pr.compact(pruned, torch.randn(4, 5))[0][0].out_features == 4
    with pytest.raises(CaptureError, match="the example is empty"):
        pr.compact(pruned, torch.randn(0, 5))


F64, F32 = torch.float64, torch.float32
When = Callable[[nn.Module, tuple[Tensor, ...]], bool]
MOVED = ShrinkPlan(cuts=(), folds=(Fold("extra", torch.tensor(1.0).double()),), selects={}, rows=())


class Extra(nn.Module):
    """Passes its first input on; adds what `MOVED` changes where `when` says so, and nothing elsewhere."""

    def __init__(self, when: When) -> None:
        super().__init__()
        self.extra, self.drop, self.when = nn.Parameter(torch.zeros(())), nn.Dropout(0.5), when

    def forward(self, *given: Tensor) -> Tensor:
        return self.drop(given[0] + self.extra) if self.when(self, given) else given[0] * 1


def told(when: When, *example: Tensor, **more: Any) -> str:
    return str(verify(Extra(when).eval(), MOVED, example, **more) or "")


def looked_at(*example: Tensor, dtype: torch.dtype = F64, refused: Any = None) -> list[tuple[Tensor, ...]]:
    """The inputs that old and new network are compared on in this type, in order; `refused`: a shape of the first input."""
    found: list[tuple[Tensor, ...]] = []

    def when(net: nn.Module, given: tuple[Tensor, ...]) -> bool:
        if tuple(given[0].shape) == refused:
            raise RuntimeError("not of this size")
        if net.extra.dtype == dtype and bool(net.extra == 0):
            found.append(given)
        return False

    assert told(when, *example) == ""
    return found


def shapes(*example: Tensor, **more: Any) -> list[tuple[int, ...]]:
    return [tuple(given[0].shape) for given in looked_at(*example, **more)]


@pytest.mark.parametrize(
    ("shape", "others"),
    [
        ((10,), [(8,), (1,), (2,), (3,)]),
        ((10, 1), [(8, 1), (1, 1), (2, 1), (3, 1)]),
        ((10, 2), [(8, 2), (1, 2), (2, 2), (3, 2), (2, 1)]),
        ((4, 8, 5), [(4, 8, 5), (1, 8, 5), (2, 8, 5), (3, 8, 5), (2, 6, 5), (2, 8, 4)]),
        ((4, 2, 8, 6), [(3, 2, 16, 14), (4, 2, 8, 6), (1, 2, 8, 6), (2, 2, 8, 6), (3, 2, 8, 6)]),
        ((2, 1, 4, 5, 6), [(2, 1, 4, 5, 6), *((n, 1, 4, 5, 6) for n in (1, 2, 3)), (2, 1, 6, 7, 8)]),
        ((8, 5000), [(8, 5000), (1, 5000), (2, 5000), (3, 5000), (2, 3750)]),
        ((3, 33000), [(2, 33000), (1, 33000), (2, 24750)]),
        ((3, 1, 32, 32, 33), [(2, 1, 32, 32, 33), (1, 1, 32, 32, 33)]),
    ],
)
def test_other_batches_sizes_and_lengths_are_looked_at(shape: tuple[int, ...], others: list[tuple[int, ...]]) -> None:
    for dtype in (F64, F32):
        assert shapes(torch.randn(shape), dtype=dtype) == others


@pytest.mark.parametrize(
    ("image", "small"),
    [((96, 400), (32, 128)), ((200, 256), (64, 64)), ((95, 400), (103, 408)), ((400, 95), (408, 103))],
)
def test_large_images_are_compared_exactly_at_a_small_size(image: tuple[int, int], small: tuple[int, int]) -> None:
    x = torch.randn(3, 1, *image)
    assert shapes(x) == [(3, 1, *small)]
    assert shapes(x, dtype=F32) == [(3, 1, *small), (2, 1, *image), (1, 1, *image)]
    for dtype in (F64, F32):
        assert shapes(x, dtype=dtype, refused=(3, 1, *small)) == [(2, 1, *image), (1, 1, *image)]


def test_networks_of_many_parameters_see_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(8, 3)
    monkeypatch.setattr("paring.removal.verify.HEAVY", 1)
    assert shapes(x)[:4] == [(8, 3), (1, 3), (2, 3), (3, 3)]
    monkeypatch.setattr("paring.removal.verify.HEAVY", 0)
    assert shapes(x) == [(2, 3), (1, 3), (2, 2)]


def test_inputs_of_one_length_get_the_other_one_together() -> None:
    x, mask, image, volume = (
        torch.randn(4, 8, 5),
        torch.rand(4, 8) < 0.5,
        torch.randn(4, 1, 8, 8),
        torch.ones(4, 1, 2, 2, 2),
    )
    found = [[tuple(t.shape[1:]) for t in given] for given in looked_at(x, mask, image, volume)]
    same = [(8, 5), (8,), (1, 8, 8), (1, 2, 2, 2)]
    assert found == [
        [(8, 5), (8,), (1, 16, 16), (1, 2, 2, 2)],
        *[same] * 4,
        [(6, 5), (6,), *same[2:]],
        [(8, 4), *same[1:]],
        [*same[:3], (1, 4, 4, 4)],
    ]


def test_at_most_four_other_lengths() -> None:
    given = [torch.randn(2, n, n + 1) for n in (2, 4, 6)]
    assert len(looked_at(*given)) == 4 + 4


def test_inputs_without_a_common_batch_keep_their_shapes() -> None:
    found = looked_at(torch.randn(20), torch.randn(3))
    assert [[tuple(t.shape) for t in given] for given in found] == [[(20,), (3,)]] * 4


def test_random_inputs_are_like_the_example() -> None:
    torch.manual_seed(0)
    wide, narrow, constant = 50 + 5 * torch.randn(4, 100), 2 + 0.1 * torch.randn(4, 90), torch.ones(4, 80)
    first, *others = looked_at(wide, narrow, constant, torch.tensor([[3, 7]] * 4), torch.ones(4, 0))
    assert torch.equal(first[0].float(), wide)
    for given in others:
        for x, mean, spread in zip(given, (50, 2, 1), (5, 0.1, 1), strict=False):
            assert abs(float(x.mean()) - mean) < 0.5 * spread
            assert 0.7 * spread < float(x.std()) < 1.3 * spread
        assert given[3].dtype == torch.int64
        assert set(given[3].unique().tolist()) <= {3, 7}
        assert given[4].numel() == 0
    assert all(bool(given[0].isfinite().all()) for given in looked_at(torch.ones(1)))


@pytest.mark.parametrize("shape", [(4, 3), (1, 3), (2, 3), (3, 3), (2, 2)])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_a_difference_on_any_of_these_inputs_is_told(shape: tuple[int, int], dtype: torch.dtype) -> None:
    problem = told(lambda net, given: given[0].shape == shape and given[0].dtype == dtype, torch.randn(4, 3))
    assert problem.startswith("outputs differ by")
    assert problem.endswith(f"in {str(dtype)[6:]} in eval mode on inputs of shape {shape}")


@pytest.mark.parametrize(("shape", "other"), [((4, 1, 5, 5), (3, 1, 13, 13)), ((4, 1, 3, 3, 3), (2, 1, 5, 5, 5))])
def test_a_difference_at_another_size_is_told(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    problem = told(lambda net, given: given[0].shape == other, torch.randn(shape))
    assert problem.endswith(f"in eval mode on inputs of shape {other}")


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize(("text", "said"), [("one\ntwo", "RuntimeError: one "), ("", "RuntimeError:  ")])
def test_a_smaller_network_that_fails_is_told(dtype: torch.dtype, text: str, said: str) -> None:
    def when(net: nn.Module, given: tuple[Tensor, ...]) -> bool:
        if bool(net.extra != 0) and net.extra.dtype == dtype:
            raise RuntimeError(text)
        return False

    problem = told(when, torch.randn(4, 3))
    assert problem == f"the smaller network fails with {said}in eval mode on inputs of shape (4, 3)"


def only(*dtypes: torch.dtype) -> When:
    def when(net: nn.Module, given: tuple[Tensor, ...]) -> bool:
        if given[0].dtype not in dtypes:
            raise RuntimeError("expected another type")
        return bool(given[0].shape[0] == 1)

    return when


@pytest.mark.parametrize("dtype", [F64, F32])
def test_networks_that_run_in_one_type_are_compared_in_it(dtype: torch.dtype) -> None:
    assert told(only(dtype), torch.randn(4, 3)).endswith(f"{str(dtype)[6:]} in eval mode on inputs of shape (1, 3)")
    assert told(only(), torch.randn(4, 3)) == "the network refuses the example itself in eval mode"


class Fixed(nn.Module):
    """What the function gives, in every mode and form."""

    def __init__(self, function: Callable[[Tensor, bool], Any]) -> None:
        super().__init__()
        self.extra, self.function = nn.Parameter(torch.zeros(())), function

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.training)


class Coarse(nn.Module):
    """Rounds to about 1e-3 in float32, where it also adds some of what `MOVED` changes."""

    def __init__(self, some: float) -> None:
        super().__init__()
        self.extra, self.some = nn.Parameter(torch.zeros(())), some

    def forward(self, x: Tensor) -> Tensor:
        return x + 3e4 - 3e4 + (self.some * self.extra if x.dtype == F32 else 0)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 1, 96, 400)])
def test_rounding_is_measured_where_large_images_are_not_compared_exactly_too(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert verify(Coarse(2e-3).eval(), MOVED, x) is None
    assert "in float32 in eval mode" in str(verify(Coarse(2e-2).eval(), MOVED, x))


def test_only_the_example_has_to_be_without_nan() -> None:
    x = torch.rand(4, 3)
    assert verify(Fixed(lambda x, _: x / 0 * 0 if len(x) == 1 else x).eval(), MOVED, x) is None
    assert verify(Fixed(lambda x, train: x / 0 * 0 if train else x).eval(), MOVED, x, train=True) is None
    assert verify(Fixed(lambda x, _: (x + 1) * 1e30 * 1e30).eval(), MOVED, x) is None, "finite in float64"
    with pytest.raises(ValueError, match="own output is NaN"):
        verify(Fixed(lambda x, _: x / 0 * 0).eval(), MOVED, x)
    with pytest.raises(ValueError, match="own output is infinite"):
        verify(Fixed(lambda x, _: (x.abs() + 1) * 1e30 * 1e30).eval(), MOVED, torch.rand(2, 1, 96, 400))
    with pytest.raises(ValueError, match="Fixed returns no tensor to compare"):
        verify(Fixed(lambda *_: 1).eval(), MOVED, x)


def test_train_mode_is_looked_at_where_it_is_asked_for() -> None:
    when: When = lambda net, given: net.training  # noqa: E731
    x = torch.randn(4, 3)
    assert told(when, x) == ""
    assert told(when, x, train=True).endswith("in train mode on inputs of shape (4, 3)")
    assert told(lambda net, _: not net.training, x, train=True).endswith("in eval mode on inputs of shape (4, 3)")


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (lambda x: x + 1, ""),
        (lambda x: x[:, :2], "outputs have other shapes in train mode"),
        (lambda x: x @ x, "the smaller network fails with RuntimeError: "),
    ],
)
def test_of_networks_that_draw_noise_while_training_the_smaller_one_has_to_run(
    after: Callable[[Tensor], Tensor], said: str
) -> None:
    state = torch.get_rng_state()
    net = Fixed(lambda x, train: F.dropout(x, training=train)).eval()
    smaller = Fixed(lambda x, train: after(F.dropout(x)) if train else x).eval()
    problem = str(verify(net, MOVED, torch.ones(4, 3), train=True, make=lambda _: smaller) or "")
    assert problem.startswith(said)
    assert problem.endswith("in train mode") == bool(said)
    assert torch.equal(torch.get_rng_state(), state)
    broken = Fixed(lambda x, train: F.dropout(x) @ x if train else x).eval()
    assert verify(broken, MOVED, torch.ones(4, 3), train=True, make=lambda _: smaller) is None


@pytest.mark.parametrize("training", [False, True])
def test_frozen_parts_of_a_network_in_train_mode_stay_frozen(training: bool) -> None:
    def run(x: Tensor, mode: bool) -> Tensor:
        modes.append(mode)
        return x

    modes: list[bool] = []
    net = nn.Sequential(Fixed(run), nn.Identity()).train(training)
    net[0].eval()
    assert verify(net, MOVED, torch.randn(4, 3), train=True, make=lambda old: old) is None
    assert modes[0] is False
    assert modes[-1] is not training
    assert net.training == training
    assert not net[0].training
