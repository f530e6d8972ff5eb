"""Gates on packed weights: the forward is that of the layer whose weights were multiplied by hand."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import paring as pr
from paring.core import (
    GatedPacked,
    Kind,
    gate_shape,
    gates,
    kind_of,
    named_weight,
    packed_name,
    put,
    register,
    release,
    stock_class,
)
from paring.gates import GaussianGate, MaskGate, StochasticGate

F64 = torch.float64
X = torch.randn(3, 4, 8, dtype=F64)
OTHER = torch.randn(3, 5, 8, dtype=F64)
SMALLER, WIDER = torch.randn(3, 5, 6, dtype=F64), torch.randn(3, 5, 7, dtype=F64)
LATER = torch.ones(4, 4, dtype=torch.bool).triu(1)
PADDED = torch.zeros(3, 4, dtype=torch.bool)
PADDED[0, 3] = PADDED[2, 2:] = True

Call = Callable[[nn.Module], Any]


def attention(*given: Tensor, **options: Any) -> Call:
    return lambda layer: layer(*given, **options)


def first(*given: Tensor) -> Call:
    return lambda layer: layer(*given)


T = [one.transpose(0, 1) for one in (X, OTHER)]
LAYERS: dict[str, tuple[Callable[[], nn.Module], Call]] = {
    "lstm": (lambda: nn.LSTM(8, 6, batch_first=True), first(X)),
    "lstm of two layers": (lambda: nn.LSTM(8, 6, 2), first(X)),
    "lstm in both directions": (lambda: nn.LSTM(8, 6, 2, bidirectional=True), first(X)),
    "lstm projected": (lambda: nn.LSTM(8, 6, 2, bidirectional=True, proj_size=3), first(X)),
    "lstm without bias": (lambda: nn.LSTM(8, 6, bias=False), first(X)),
    "lstm of one example": (lambda: nn.LSTM(8, 6), first(X[0])),
    "lstm with a state": (lambda: nn.LSTM(8, 6), lambda m: m(X, (torch.ones(1, 4, 6, dtype=F64),) * 2)),
    "lstm of sequences": (lambda: nn.LSTM(8, 6), lambda m: m(pack_sequence([X[0], X[1, :2]]))[0].data),
    "gru": (lambda: nn.GRU(8, 6, 2, bidirectional=True), first(X)),
    "rnn": (lambda: nn.RNN(8, 6, 2, nonlinearity="relu", bidirectional=True), first(X)),
    "lstm cell": (lambda: nn.LSTMCell(8, 6), first(X[:, 0])),
    "gru cell": (lambda: nn.GRUCell(8, 6), first(X[:, 0])),
    "rnn cell": (lambda: nn.RNNCell(8, 6, bias=False), first(X[:, 0])),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), attention(X, X, X)),
    "attention without weights": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        attention(X, X, X, need_weights=False),
    ),
    "attention, batch second": (lambda: nn.MultiheadAttention(8, 2), attention(T[0], T[1], T[1])),
    "attention with masks": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True, bias=False),
        attention(X, X, X, attn_mask=LATER, key_padding_mask=PADDED, need_weights=False),
    ),
    "attention with all weights": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True),
        attention(X, X, X, average_attn_weights=False),
    ),
    "attention to others": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        attention(X, OTHER, OTHER, need_weights=False),
    ),
    "attention of other sizes": (
        lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=7, batch_first=True),
        attention(X, SMALLER, WIDER),
    ),
}
every = pytest.mark.parametrize("name", LAYERS)
modes = pytest.mark.parametrize("mode", ["train", "eval", "fast path"])


def leaves(layer: nn.Module) -> tuple[str, ...]:
    kind = kind_of(layer)
    assert kind is not None
    return kind.packed(layer)


def masked(layer: nn.Module, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """The layer with a random mask on each of its weights, and a copy that was multiplied by hand."""
    generator, naive = torch.Generator().manual_seed(seed), copy.deepcopy(layer)
    for leaf in leaves(layer):
        gate = MaskGate(gate_shape(layer, "weights", leaf))
        gate.choose(torch.rand(gate.shape, generator=generator) < 0.5)
        put(layer, "weights", gate, leaf)
        with torch.no_grad():
            naive.get_parameter(leaf).mul_(gate.mask)
    return layer, naive


def flat(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    return [] if found is None else [one for part in found for one in flat(part)]


@every
@modes
@pytest.mark.parametrize("seed", range(3))
def test_a_masked_layer_is_the_one_multiplied_by_hand(name: str, mode: str, seed: int) -> None:
    make, call = LAYERS[name]
    layer, naive = masked(make().double().train(mode == "train"), seed)
    assert type(layer) is not type(naive)
    with torch.set_grad_enabled(mode != "fast path"):
        found, expected = flat(call(layer)), flat(call(naive))
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14), float((one - other).abs().max())
    if mode == "fast path":
        return
    for outputs in (found, expected):
        torch.stack([one.pow(2).sum() for one in outputs]).sum().backward()
    masks = {f"{name}": gate.mask for name, _, gate in gates(layer) if isinstance(gate, MaskGate)}
    for parameter, held in naive.named_parameters():
        mine, theirs = layer.get_parameter(parameter).grad, held.grad
        assert (mine is None) == (theirs is None), parameter
        if mine is not None and theirs is not None:
            seen = masks.get(packed_name("", parameter), torch.ones_like(theirs))
            assert torch.allclose(mine, theirs * seen, rtol=1e-12, atol=1e-14), parameter


@every
def test_what_is_released_is_the_stock_layer_with_these_weights(name: str) -> None:
    make, call = LAYERS[name]
    layer, naive = masked(make().double().eval())
    with torch.no_grad():
        before = flat(call(layer))
        release(layer)
        assert type(layer) is type(naive)
        assert [n for n, _ in layer.named_modules()] == [n for n, _ in naive.named_modules()]
        assert all(torch.equal(p, naive.get_parameter(n)) for n, p in layer.named_parameters())
        assert all(torch.allclose(one, other, atol=1e-14) for one, other in zip(before, flat(call(layer)), strict=True))


@every
def test_copies_pickles_states_and_types_keep_the_gates(name: str) -> None:
    make, call = LAYERS[name]
    layer, _ = masked(make().double())
    stock = set(make().state_dict())
    assert stock <= set(layer.state_dict())
    assert all("weight_gates." in key for key in set(layer.state_dict()) - stock)
    expected = flat(call(layer))[0]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(flat(call(other))[0], expected)
        with torch.no_grad():
            for leaf in leaves(other):
                other.get_parameter(leaf).zero_()
        assert not torch.equal(flat(call(other))[0], expected), "a copy has weights of its own"
        assert torch.equal(flat(call(layer))[0], expected)
    fresh, _ = masked(make().double(), seed=5)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(flat(call(fresh))[0], expected)
    again = copy.deepcopy(layer).float().double()
    assert torch.allclose(flat(call(again))[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "attention"])
def test_autocast(name: str) -> None:
    make, _ = LAYERS[name]
    plain, (layer, _), x = make(), masked(make()), X.float()
    inputs = (x, x, x) if name == "attention" else (x,)
    with torch.autocast("cpu", torch.bfloat16):
        try:
            plain(*inputs)
        except RuntimeError as error:
            pytest.skip(f"torch itself cannot here: {error}")
        out = flat(layer(*inputs))[0]
    out.float().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())


@pytest.mark.parametrize("name", ["lstm projected", "attention", "gru"])
def test_noise_is_drawn_once_for_each_weight(name: str) -> None:
    make, call = LAYERS[name]
    layer = make().double()
    naive = copy.deepcopy(layer)
    for leaf in leaves(layer):
        put(layer, "weights", GaussianGate(layer.get_parameter(leaf), log_sigma2=-3.0), leaf)
    torch.manual_seed(1)
    found = flat(call(layer))[0]
    torch.manual_seed(1)
    with torch.no_grad():
        for leaf in leaves(naive):
            weight = naive.get_parameter(leaf)
            weight.add_(torch.randn(weight.shape, dtype=F64) * torch.tensor(-3.0, dtype=F64).exp().sqrt())
    assert torch.allclose(found, flat(call(naive))[0], atol=1e-12)
    found.sum().backward()
    assert all(
        float(gate.log_sigma2.grad.abs().sum()) > 0 for _, _, gate in gates(layer) if isinstance(gate, GaussianGate)
    )


def test_unit_and_weight_gates_of_an_attention_multiply() -> None:
    layer, naive = masked(nn.MultiheadAttention(8, 2, batch_first=True).double())
    units = MaskGate((24,))
    units.choose(torch.arange(24) % 3 > 0)
    put(layer, "units", units)
    with torch.no_grad():
        naive.in_proj_weight.mul_(units.mask[:, None])
        naive.in_proj_bias.mul_(units.mask)
    expected = naive(X, X, X)[0]
    assert torch.equal(layer(X, X, X)[0], expected)
    release(layer)
    assert torch.equal(layer(X, X, X)[0], expected)


class Encoder(nn.Module):
    """Encoder layers of torch, which fuse their parts in eval mode."""

    def __init__(self, stacked: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2) if stacked else layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.encoder(x)
        return found


@pytest.mark.parametrize("stacked", [False, True])
def test_encoder_layers_see_the_masks_on_every_path(stacked: bool) -> None:
    net = Encoder(stacked).double()
    naive = copy.deepcopy(net)
    run = pr.attach(net, pr.methods.AtInit(score="random", density=0.5), X, optimizer=None)
    masks = {name: gate.mask for name, _, gate in gates(net) if isinstance(gate, MaskGate)}
    layers = [net.encoder] if isinstance(net.encoder, nn.TransformerEncoderLayer) else list(net.encoder.layers)
    assert len(masks) == 4 * len(layers)
    with torch.no_grad():
        for name, mask in masks.items():
            named_weight(naive, name).mul_(mask)
    for mode in (True, False):
        net.train(mode), naive.train(mode)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                assert torch.allclose(net(X), naive(X), atol=1e-13)
    small = run.finish()
    with torch.no_grad():
        assert torch.allclose(small(X), naive(X), atol=1e-12)


class Twice(nn.Module):
    """A layer of one's own, with two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.left).relu() @ self.right


class GatedTwice(GatedPacked, Twice):
    """Its gated class."""


def test_a_class_of_ones_own_names_what_it_packs() -> None:
    kind = Kind(
        Twice, per_unit=(), scaled=(), gated=GatedTwice, places=(), packed=lambda layer: tuple(layer._parameters)
    )
    if kind_of(Twice) is None:
        register(kind)
    net = nn.Sequential(Twice(), nn.Linear(8, 3)).double()
    run = pr.attach(net, pr.methods.AtInit(score="magnitude", density=0.5), X)
    assert [name for name, _, _ in gates(net)] == ["0.left", "0.right", "1"]
    assert sum(int(gate.support().sum()) for _, _, gate in gates(net)) == (8 * 8 * 2 + 8 * 3) // 2
    small = run.finish()
    assert torch.allclose(small(X), net(X), atol=1e-12)
    assert type(small[0]) is Twice


def test_what_does_not_fit_is_refused() -> None:
    layer = nn.LSTM(4, 3)
    with pytest.raises(ValueError, match=r"needs shape \(12, 3\), got \(3,\)"):
        put(layer, "weights", MaskGate((3,)), "weight_hh_l0")
    with pytest.raises(TypeError, match="gates on hidden units and on weights"):
        gate_shape(layer, "inputs")
    put(layer, "weights", MaskGate((12, 3)), "weight_hh_l0")
    with pytest.raises(ValueError, match="the weight_hh_l0 of this GatedLSTM already has a gate"):
        put(layer, "weights", MaskGate((12, 3)), "weight_hh_l0")
    assert stock_class(layer) is nn.LSTM
    with pytest.raises(ValueError, match="one sample per example"):
        put(
            nn.MultiheadAttention(4, 2),
            "weights",
            StochasticGate(pr.gates.relax.HardConcrete(), (4, 4), per_example=True),
            "out_proj.weight",
        )
