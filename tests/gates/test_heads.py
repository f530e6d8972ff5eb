"""One gate per attention head: on its values, at the price of its queries, keys and values, and gone exactly."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from marks import BY_HAND, CUT_SHORT
from paring.analysis import wiring
from paring.core import bare_state, gates
from paring.cost import measure
from paring.gates import StochasticGate, gate_of, sites, support
from tests.gates.nets import Attention, Library, PostAct, batch

pytestmark = [BY_HAND, CUT_SHORT]

ways = pytest.mark.parametrize(("fused", "kernel"), [(True, True), (False, True), (False, False)])


def example(size: int = 2) -> Tensor:
    return torch.randn(size, 4, 7, dtype=torch.float64)


def layers(fused: bool) -> tuple[str, ...]:
    return ("qkv",) if fused else ("q", "k", "v")


@ways
def test_heads_are_found_and_gated_on_their_values(fused: bool, kernel: bool) -> None:
    net = Attention(fused, kernel).double()
    w = wiring(net, example())
    (group,) = (g for g in w.groups if g.heads)
    assert (group.layers, group.size, group.reason) == (layers(fused), 3, "")
    (site,) = sites(net, w, ["heads"])
    assert (site.shape, site.size, site.macs) == ((3,), 3 * 4 * 13, 4 * 3 * 4 * 12 + 2 * 4 * 4 * 4)
    (mount,) = site.mounts
    values = [0] * 4 + [1] * 4 + [2] * 4
    assert mount.index == (tuple([-1] * 24 + values) if fused else tuple(values))
    assert mount.module == ("qkv" if fused else "v")
    row = next(row for row in pr.groups(net, example()) if row.layers == layers(fused))
    assert (row.units, row.parameters, row.macs, row.gates) == (
        3,
        3 * 4 * 13 + 48,
        4 * (3 * 48 + 48) + 2 * 4 * 4 * 4,
        (mount.module,),
    )
    assert row.coupling == "attention heads"


@ways
@pytest.mark.parametrize("at", ["heads", "units"])
def test_closed_heads_add_nothing_and_leave(fused: bool, kernel: bool, at: str) -> None:
    torch.manual_seed(0)
    net, x = Attention(fused, kernel).double(), example(5)
    run = pr.attach(net, pr.L0(at=at), x[:2])
    found = {site.layers: gate_of(net, site) for site in run.method.sites(net)}  # type: ignore[attr-defined]
    assert set(found) == ({layers(fused)} if at == "heads" else {layers(fused), ("up",)})
    gate = found[layers(fused)]
    for one in found.values():
        one.log_alpha.data.fill_(3.0)
    gate.log_alpha.data.copy_(torch.tensor([1.0, -5.0, 3.0]))
    by_hand = Attention(fused, kernel).double()
    by_hand.load_state_dict({key: v for key, v in bare_state(net).items() if "gate" not in key})
    with torch.no_grad():
        by_hand.proj.weight.mul_(gate.value().repeat_interleave(4))
        for name, one in found.items():
            if name == ("up",):
                by_hand.down.weight.mul_(one.value())
    wanted, said = net.eval()(x), run.cost(support)
    assert torch.allclose(wanted, by_hand(x), atol=1e-10)
    small = run.finish()
    assert torch.allclose(small(x), wanted, atol=1e-10)
    assert sum(p.numel() for p in small.parameters()) == int(said.parameters)
    assert int(run.cost().parameters) - int(said.parameters) == 3 * 4 * 13 + 48
    actual = measure(small, x[:2])
    assert (actual.macs, actual.adds) == (int(said.macs), int(said.adds))
    # the head's projections and columns of `proj` at 4 positions; its queries times keys, and weights times values
    assert int(run.cost().macs) - int(said.macs) == 4 * (3 * 4 * 12 + 48) + 2 * 4 * 4 * 4


@ways
def test_heads_train(fused: bool, kernel: bool) -> None:
    torch.manual_seed(0)
    net, x = Attention(fused, kernel).double(), example(6)
    run = pr.attach(net, pr.L0(price=pr.Budget(params=0.8), at="heads"), x[:2], steps=12)
    opt = torch.optim.Adam(run.parameter_groups(lr=1e-2))
    for _ in range(12):
        opt.zero_grad()
        (F.mse_loss(net(x), x[..., :5]) + run.penalty()).backward()
        run.step(opt)
    small = run.finish()
    assert sum(p.numel() for p in small.parameters()) <= 0.8 * int(run.cost().parameters)
    assert torch.allclose(small(x), net.eval()(x), atol=1e-10)


def test_several_query_heads_of_one_key_are_one_head() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(n, m) for n, m in ((6, 16), (6, 8), (6, 8), (16, 3)))

        def forward(self, x: Tensor) -> Tensor:
            b, t, _ = x.shape
            q, k, v = (f(x).view(b, t, -1, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            return self.out(y.transpose(1, 2).reshape(b, t, 16))  # type: ignore[no-any-return]

    x = torch.randn(2, 5, 6)
    (group,) = (g for g in wiring(Grouped(), x).groups if g.heads)
    assert (group.layers, group.size) == (("q", "k", "v"), 2)
    (site,) = sites(Grouped(), wiring(Grouped(), x), ["heads"])
    assert (site.mounts[0].module, site.mounts[0].index) == ("v", (0,) * 4 + (1,) * 4)
    assert site.size == 7 * (8 + 4 + 4)


@pytest.mark.parametrize("bias", [True, False])
def test_the_attention_of_torch(bias: bool) -> None:
    torch.manual_seed(0)
    net, x = Library(bias).double(), example(5)
    run = pr.attach(net, pr.L0(price=1e-3, at="heads", l2=1e-3), x[:2])
    assert isinstance(net.attention, nn.MultiheadAttention)
    assert set(Library(bias).state_dict()) <= set(net.state_dict())
    opt = torch.optim.Adam(run.parameter_groups(lr=1e-3))
    for _ in range(3):
        opt.zero_grad()
        (F.mse_loss(net(x), x[..., :5]) + run.penalty()).backward()
        run.step(opt)
    for copy_ in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copy_.eval()(x), net.eval()(x))
    ((_, _, gate),) = gates(net)
    assert isinstance(gate, StochasticGate)
    gate.log_alpha.data.copy_(torch.tensor([1.0, -5.0, 3.0]))
    by_hand = Library(bias).double().eval()
    by_hand.load_state_dict({key: v for key, v in bare_state(net).items() if "gate" not in key})
    by_hand.attention.out_proj.weight.data.mul_(gate.value().repeat_interleave(4))
    wanted, said = net(x), run.cost(support)
    assert torch.allclose(wanted, by_hand(x), atol=1e-10)
    with torch.no_grad():
        assert torch.allclose(net(x), wanted, atol=1e-10)
    small = run.finish()
    assert torch.allclose(small(x), wanted, atol=1e-10)
    assert sum(p.numel() for p in small.parameters()) == int(said.parameters)
    assert int(run.cost().parameters) - int(said.parameters) == 3 * 4 * (12 + bias) + 48
    assert measure(small, x[:2]).macs == int(said.macs)
    assert int(run.cost().macs) - int(said.macs) == 4 * (3 * 4 * 12 + 48) + 2 * 4 * 4 * 4
    with pytest.warns(pr.ParingWarning, match="removal had to keep more"):  # a module that has its sizes written down
        whole = run.finish(inplace=True)
    assert type(whole.attention) is nn.MultiheadAttention


def test_torch_attention_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(ValueError, match="cannot draw one sample per example: its gates multiply weights"):
        pr.attach(Library(), pr.L0(at="heads", per_example=True), example().float())


def bert(transformers: Any) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=20
    )
    return transformers.BertModel(config)  # type: ignore[no-any-return]


def gpt2(transformers: Any) -> nn.Module:
    sizes = {"vocab_size": 50, "n_embd": 12, "n_layer": 1, "n_head": 3, "n_inner": 20, "n_positions": 8}
    config = transformers.GPT2Config(**sizes, use_cache=False, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [bert, gpt2])
def test_models_of_the_transformers_library(make: Callable[[Any], nn.Module]) -> None:
    torch.manual_seed(0)
    net, ids = make(pytest.importorskip("transformers")).double().eval(), torch.randint(0, 50, (2, 6))
    rows = {row.coupling: row for row in pr.groups(net, ids) if row.gateable}
    assert (rows["attention heads"].units, rows[""].units) == (3, 20)
    run = pr.attach(net, pr.L0(at="units"), ids)
    assert sorted(gate.shape[0] for _, _, gate in gates(net)) == [3, 20]
    for _, _, gate in gates(net):
        assert isinstance(gate, StochasticGate)
        gate.log_alpha.data.fill_(3.0)
        gate.log_alpha.data[1] = -5.0
    for copy_ in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copy_(ids)[0], net(ids)[0])
    wanted, said = net(ids)[0], run.cost(support)
    small = run.finish()
    out = small(ids)
    assert torch.allclose(out[0] if 0 in out else next(iter(out.values())), wanted, atol=1e-10)
    assert sum(p.numel() for p in small.parameters()) == int(said.parameters)
    gone = 3 * 4 * 13 + 48 + 13 + 12
    assert int(run.cost().parameters) - int(said.parameters) == gone
    assert measure(small, ids).macs == int(said.macs)
    with pytest.raises(ValueError, match="no place for gates at 'weights:Conv1D'"):
        pr.attach(gpt2(pytest.importorskip("transformers")), pr.L0(at="weights:Conv1D"), ids)


def test_refused_with_the_reason() -> None:
    net = PostAct()
    with pytest.raises(
        ValueError, match="no place for gates at 'heads' in this PostAct: no attention head is selected"
    ):
        sites(net, wiring(net, batch(net, 2)), ["heads"])
    attention = Attention().double()
    w = wiring(attention, example())
    with pytest.raises(ValueError, match="two places ask for a gate at 'units' of layer 'qkv'"):
        sites(attention, w, ["units", "heads"])
    assert [site.layers for site in sites(attention, w, ["units:!qkv", "heads"])] == [("up",), ("qkv",)]
    assert not list(gates(attention))


def test_queries_that_a_norm_over_all_heads_reads_stay_and_so_do_their_heads() -> None:
    class Normed(Attention):
        """As in Olmo 2."""

        def __init__(self) -> None:
            super().__init__(False, True)
            self.q = nn.Sequential(self.q, nn.RMSNorm(12))  # type: ignore[assignment]

    (row,) = (row for row in pr.groups(Normed().double(), example()) if "q.0" in row.layers)
    assert (row.gateable, row.reason) == (False, "read by rms_norm in 'q.1'")


def test_units_that_go_only_with_a_whole_layer_have_no_gate() -> None:
    class Spatial(nn.Module):
        """As in a gMLP: half of the channels times the other half, mixed over positions."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm, self.mix, self.down = (
                nn.Linear(5, 12),
                nn.LayerNorm(6),
                nn.Linear(7, 7),
                nn.Linear(6, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            u, v = self.up(x).chunk(2, dim=-1)
            out: Tensor = self.down(u * self.mix(self.norm(v).transpose(1, 2)).transpose(1, 2))
            return out

    row = next(row for row in pr.groups(Spatial(), torch.randn(2, 7, 5)) if "mix" in row.layers)
    assert (row.gateable, row.reason) == (
        False,
        "its units go only together with all of 'mix', and a layer keeps its last one",
    )
