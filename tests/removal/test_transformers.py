"""Heads, query/key pairs, value dimensions and hidden units of transformers: gone, with the same function."""

from __future__ import annotations

import copy
import pickle
import random

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from paring.removal import GraphNet, compact
from tests.reference.heads import attention_sizes, joined
from tests.removal.test_compact import gap
from tests.removal.transformers_zoo import GPT, Attention, Block, ViT

STYLES = ["sdpa", "fused", "chunked", "gpt", "softmax", "einsum"]
QUICK = settings(
    max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)


def projections(net: Attention) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias views of queries, keys and values."""
    if hasattr(net, "q"):
        return [(m.weight, m.bias) for m in (net.q, net.k, net.v)]
    return list(zip(net.qkv.weight.chunk(3), net.qkv.bias.chunk(3), strict=True))


def hurt(net: Attention, draw: random.Random) -> None:
    """Zero or constant query, key and value rows, dead heads, unread outputs."""
    (q, qb), (k, kb), (v, vb) = projections(net)
    with torch.no_grad():
        for bias in (qb, kb, vb):
            bias.normal_()
        for i in range(len(q)):
            fate = draw.randrange(8)
            if fate == 0:
                q[i], qb[i] = 0, 0
            if fate in (1, 2):
                k[i], kb[i] = 0, kb[i] * (fate == 1)
            if draw.randrange(4) == 0:
                v[i], vb[i] = 0, vb[i] * draw.randrange(2)
            if draw.randrange(6) == 0:
                net.proj.weight[:, i] = 0
        size = len(q) // net.heads
        dead = draw.randrange(net.heads + 2)
        if dead < net.heads:
            v[dead * size : (dead + 1) * size] = 0


def expected(net: Attention) -> tuple[int, int, int]:
    q, k, v = (joined(weight, bias) for weight, bias in projections(net))
    heads, pairs, values = attention_sizes(q, k, v, net.heads, (net.proj.weight != 0).any(0))
    if net.style == "fused":  # one array holds queries, keys and values
        pairs = values = max(pairs, values)
    return heads, pairs, values


def found(net: nn.Module) -> tuple[int, int, int]:
    """Rows of queries, of keys, and columns of the output projection."""
    if hasattr(net, "q"):
        return len(net.q.weight), len(net.k.weight), net.proj.in_features
    rest = len(net.qkv.weight) - net.proj.in_features
    return rest // 2, rest // 2, net.proj.in_features


@pytest.mark.parametrize("style", STYLES)
def test_vision_transformers(style: str) -> None:
    torch.manual_seed(0)
    net = ViT(style, depth=2 if style == "sdpa" else 1).double().eval()
    for i, block in enumerate(net.blocks):
        hurt(block.attention, random.Random(i))
        with torch.no_grad():
            block.mlp[0].weight[3:9] = 0
    small, report = compact(net, torch.randn(2, 3, 8, 8).double(), verify=False, form="graph")
    assert report.form == "graph"
    for n in (1, 5):
        assert gap(net, small, torch.randn(n, 3, 8, 8).double()) < 1e-10
    for old, new in zip(net.blocks, small.blocks, strict=True):
        heads, pairs, values = expected(old.attention)
        if style != "softmax" and style != "einsum":  # there a constant key is not known to be harmless
            assert found(new.attention) == (heads * pairs, heads * pairs, heads * values)
        assert new.mlp[0].out_features == 14


@st.composite
def attentions(draw: st.DrawFn) -> tuple[Attention, Tensor]:
    torch.manual_seed(draw(st.integers(0, 1000)))
    heads, size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    style = draw(st.sampled_from(STYLES[:4]))
    net = Attention(heads * size, heads, style, causal=draw(st.booleans())).double().eval()
    hurt(net, random.Random(draw(st.integers(0, 1000))))
    return net, torch.randn(2, 3, heads * size).double()


@QUICK
@given(attentions())
def test_random_attention_keeps_its_function_and_nothing_else(case: tuple[Attention, Tensor]) -> None:
    net, x = case
    small, _ = compact(net, x, verify=False, form="graph")
    assert gap(net, small, torch.randn(4, *x.shape[1:]).double()) < 1e-10
    heads, pairs, values = expected(net)
    value, _ = projections(net)[2]
    live = (value != 0).any(1) & (net.proj.weight != 0).any(0)
    if net.heads == 1 and not bool(live.any()):  # the scores of a single head are no unit, and are always needed
        return
    assert found(small) == (heads * pairs, heads * pairs, heads * values)


def gpt() -> GPT:
    torch.manual_seed(0)
    net = GPT().double().eval()
    for i, block in enumerate(net.blocks):
        hurt(block.attention, random.Random(i + 10))
    return net


def test_the_graph_form_is_a_network_like_any_other() -> None:
    net, x = gpt(), torch.randint(0, 11, (3, 6))
    small, report = compact(net, x)
    assert isinstance(small, GraphNet)
    assert report.form == "graph"
    assert "split in 'blocks.0.attention'" in report.notes[0]
    assert "in graph form" in str(report)
    assert small.head.weight is small.words.weight
    assert list(small.state_dict()) == list(net.state_dict())
    again = pickle.loads(pickle.dumps(small))
    assert again.head.weight is again.words.weight
    for copy_ in (again, copy.deepcopy(small), torch.compile(small, backend="eager")):
        assert gap(net, copy_, x) < 1e-10
    program = torch.export.export(small, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
    more = torch.randint(0, 11, (7, 6))
    assert torch.allclose(program.module()(more), net(more), atol=1e-10)
    assert gap(copy.deepcopy(net).float(), copy.deepcopy(small).float(), x) < 1e-4
    assert compact(small, x)[0].state_dict().keys() == small.state_dict().keys()
    for length in (2, 5):  # other lengths, too
        other = torch.randint(0, 11, (3, length))
        assert gap(net, small, other) < 1e-10
    with pytest.raises(ValueError, match="inplace"):
        compact(net, x, inplace=True, form="graph")


def test_training_goes_on_alike() -> None:
    net, x = gpt(), torch.randint(0, 11, (3, 6))
    small, _ = compact(net, x, verify=False, form="graph")
    for one in (net.train(), small.train()):
        F.cross_entropy(one(x).flatten(0, 1), x.flatten()).backward()
    grads = dict(small.named_parameters())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in grads.values())
    for name, parameter in net.named_parameters():
        if parameter.shape == grads[name].shape:
            assert torch.allclose(parameter.grad, grads[name].grad, atol=1e-10), name
    small.words.weight.requires_grad_(False)
    assert not copy.deepcopy(small).head.weight.requires_grad


def test_batch_norm_and_dropout_follow_the_mode() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attention, self.drop = nn.BatchNorm1d(3), Attention(8, 2), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.attention(self.norm(x)))

    torch.manual_seed(0)
    net = Net().double().train()
    with torch.no_grad():
        net.attention.v.weight[:4], net.attention.v.bias[:4] = 0, 0
    x = torch.randn(4, 3, 8).double()
    small, report = compact(net, x)
    assert report.form == "graph"
    assert small.training
    for one in (net, small):
        torch.manual_seed(1)
        one(x)
    assert int(small.norm.num_batches_tracked) == 1
    assert torch.allclose(net.norm.running_var, small.norm.running_var)
    assert not torch.equal(small(x), small(x))
    assert gap(net.eval(), small.eval(), x) > 0.1 or int(net.norm.num_batches_tracked) != int(
        small.norm.num_batches_tracked
    )
    small.load_state_dict({**small.state_dict(), **{k: v for k, v in net.state_dict().items() if "norm" in k}})
    assert gap(net, small, x) < 1e-10


def test_module_form_and_graph_form_agree() -> None:
    class Sized(Attention):
        """Takes the number of heads from the width of a head."""

        def forward(self, x: Tensor) -> Tensor:
            b, t, _ = x.shape
            q, k, v = (m(x).view(b, t, -1, 4).transpose(1, 2) for m in (self.q, self.k, self.v))
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))

    torch.manual_seed(0)
    net, x = Sized().double().eval(), torch.randn(2, 3, 16).double()
    with torch.no_grad():
        net.v.weight[4:8], net.v.bias[4:8] = 0, 0
    small, report = compact(net, x)
    assert report.form == "module"
    assert type(small) is Sized
    assert [m.out_features for m in (small.q, small.k, small.v)] == [12, 12, 12]
    graph, _ = compact(net, x, form="graph", verify=False)
    for one in (small, graph):
        one(x).square().sum().backward()
    for a, b in zip(small.parameters(), graph.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-10)


def test_the_scale_of_attention_stays_in_module_form() -> None:
    class Four(nn.Module):
        """Four heads, whatever they are wide."""

        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    net, x = Four().double().eval(), torch.randn(2, 3, 16).double()
    with torch.no_grad():
        for part in range(3):
            net.qkv.weight[part * 16 + 1 : part * 16 + 16 : 4] = 0
            net.qkv.bias[part * 16 + 1 : part * 16 + 16 : 4] = 0
    small, report = compact(net, x)
    assert report.form == "module"
    assert net.qkv.out_features - small.qkv.out_features == 12
    assert gap(net, small, torch.randn(5, 3, 16).double()) < 1e-10


def test_multihead_attention_and_its_encoder_layer() -> None:
    torch.manual_seed(0)
    net, x = nn.TransformerEncoderLayer(16, 4, 20, batch_first=True).double().eval(), torch.randn(2, 5, 16).double()
    with torch.no_grad():
        _, key, value = net.self_attn.in_proj_weight.chunk(3)
        value[4:8] = 0
        for i in (0, 9, 14):
            key[i], value[i] = 0, 0
        net.linear1.weight[3:9] = 0
    small, report = compact(net, x)
    assert report.form == "graph"
    assert small.self_attn.in_proj_weight.shape == (27, 16)
    assert small.self_attn.out_proj.in_features == 9
    assert small.linear1.out_features == 14
    assert gap(net, small, torch.randn(3, 5, 16).double()) < 1e-10


def test_gated_hidden_units_go_in_pairs() -> None:
    torch.manual_seed(0)
    net, x = ViT(gated=True).double().eval(), torch.randn(2, 3, 8, 8).double()
    with torch.no_grad():
        for block in net.blocks:
            for unit in (0, 5, 15, 20):  # 15 and 20 are values, 0 and 5 gates of 12
                block.mlp.both.weight[unit], block.mlp.both.bias[unit] = 0, 0
    small, report = compact(net, x)
    assert report.form == "module"  # both halves shrink alike, so that chunk(2) goes on cutting in the middle
    assert small.blocks[0].mlp.both.out_features == 16
    assert gap(net, small, torch.randn(3, 3, 8, 8).double()) < 1e-10


@pytest.mark.parametrize("apart", [False, True])
def test_rotary_and_grouped_queries_go_by_whole_groups(apart: bool) -> None:
    class Llama(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.proj = (nn.Linear(16, n) for n in (16, 8, 8, 16))
            angle = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.1])).repeat(1, 2)
            self.register_buffer("cos", angle.cos())
            self.register_buffer("sin", angle.sin())

        def turn(self, x: Tensor) -> Tensor:
            x, rest = x[..., :4], x[..., 4:]  # as where only some positions are turned: nothing is left over here
            a, b = x.chunk(2, -1)
            turned = x * self.cos + torch.cat([-b, a], -1) * self.sin
            return torch.cat([turned, rest], -1) if apart else turned

        def forward(self, x: Tensor) -> Tensor:
            b, t, _ = x.shape
            q, k, v = (m(x).view(b, t, -1, 4).transpose(1, 2) for m in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True, enable_gqa=True)
            return self.proj(y.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    net, x = Llama().double().eval(), torch.randn(2, 5, 16).double()
    with torch.no_grad():
        net.v.weight[:4], net.v.bias[:4] = 0, 0
        net.k.weight[4], net.k.bias[4] = 0, 0  # turned into its neighbour: has to stay
    small, report = compact(net, x)
    assert not report.rolled_back
    assert [len(m.weight) for m in (small.q, small.k, small.v)] == [8, 4, 4]
    assert small.proj.in_features == 8
    assert gap(net, small, torch.randn(3, 5, 16).double()) < 1e-10


def test_masks_that_come_from_outside_are_no_ground_for_constants() -> None:
    class Masked(Attention):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            q, k, v = self.split(x)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
            return self.proj(y.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    net = Masked(8, 2).double().eval()
    x, mask = torch.randn(2, 3, 8).double(), torch.ones(2, 3, dtype=torch.bool)
    with torch.no_grad():
        net.v.weight[:2] = 0  # constant: not behind a row that is masked fully
        net.v.weight[5], net.v.bias[5] = 0, 0
    small, _ = compact(net, (x, mask), verify=False, form="graph")
    mask[1] = False
    assert torch.allclose(net(x, mask), small(x, mask), atol=1e-10)
    assert small.v.out_features == 8
    with torch.no_grad():
        net.v.weight[1], net.v.bias[1] = 0, 0
    small, _ = compact(net, (x, mask), verify=False, form="graph")
    assert small.v.out_features == 6
    assert torch.allclose(net(x, mask), small(x, mask), atol=1e-10)


def test_a_whole_block_without_attention_left() -> None:
    torch.manual_seed(0)
    net, x = Block(Attention()).double().eval(), torch.randn(2, 3, 16).double()
    with torch.no_grad():
        net.attention.proj.weight.zero_()
    small, _ = compact(net, x, verify=False, form="graph")
    assert found(small.attention) == (1, 1, 1)
    assert gap(net, small, torch.randn(3, 3, 16).double()) < 1e-10
