"""Gates on hidden units of recurrent layers, and on heads of cross-attention: what is closed is what removal takes, exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from marks import BY_HAND, CUT_SHORT
from paring.analysis import wiring
from paring.core import gates, put, release
from paring.core.recurrent import gates_of, hidden_count, suffixes, unit_factors
from paring.cost import CostModel, measure
from paring.gates import MaskGate, StochasticGate, live, openness, put_gate, sites, support
from paring.methods.expected_l2 import expected_l2_of
from paring.removal import compact
from paring.testing import same_state

pytestmark = [
    CUT_SHORT,
    BY_HAND,
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]
F64 = torch.float64
X, Y = torch.randn(8, 4, 5, dtype=F64), torch.randint(3, (8,))
ASKED, GIVEN = torch.randn(3, 5, 16, dtype=F64), torch.randn(3, 7, 16, dtype=F64)


class Reader(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.pre, self.cells = nn.Linear(5, 4), kind(4, 6, batch_first=True, **options)
        ways = 2 if self.cells.bidirectional else 1
        self.fc = nn.Linear((self.cells.proj_size or 6) * ways, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc(self.cells(self.pre(x).relu())[0][:, -1])
        return made


class Loop(nn.Module):
    """A cell that is called once for every step."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell, self.fc = kind(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x[:, 0])
        for step in range(1, x.shape[1]):
            state = self.cell(x[:, step], state)
        made: Tensor = self.fc(state[0] if isinstance(state, tuple) else state)
        return made


class Beside(nn.Module):
    """What a recurrent layer gives is added to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.cells, self.fc = nn.Linear(5, 6), nn.GRU(6, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        made: Tensor = self.fc((x + self.cells(x)[0]).mean(1))
        return made


class Cross(nn.Module):
    """Queries from one source, keys and values from another."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.up, self.down = (
            nn.MultiheadAttention(16, 4, batch_first=True),
            nn.Linear(16, 32),
            nn.Linear(32, 3),
        )

    def forward(self, asked: Tensor, given: Tensor) -> Tensor:
        x = asked + self.attention(asked, given, given, need_weights=False)[0]
        made: Tensor = self.down(self.up(x).relu())
        return made


class Separate(nn.Module):
    """Keys and values of other sizes than queries."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, kdim=8, vdim=6, bias=bias, batch_first=True)
        self.keys, self.values, self.fc = nn.Linear(16, 8), nn.Linear(16, 6), nn.Linear(16, 3)

    def forward(self, asked: Tensor, given: Tensor) -> Tensor:
        found = self.attention(asked, self.keys(given), self.values(given), need_weights=False)[0]
        made: Tensor = self.fc(asked + found)
        return made


class Decoder(nn.Module):
    """A decoder layer of torch: attention to itself, then to the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(16, 4, 24, 0.0, batch_first=True, norm_first=True)

    def forward(self, asked: Tensor, given: Tensor) -> Tensor:
        made: Tensor = self.layer(asked, given)
        return made


NETS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Reader(nn.LSTM),
    "lstm without bias": lambda: Reader(nn.LSTM, bias=False),
    "gru": lambda: Reader(nn.GRU),
    "rnn": lambda: Reader(nn.RNN),
    "rnn with relu": lambda: Reader(nn.RNN, nonlinearity="relu"),
    "stacked": lambda: Reader(nn.LSTM, num_layers=2),
    "both directions": lambda: Reader(nn.GRU, num_layers=2, bidirectional=True),
    "projected": lambda: Reader(nn.LSTM, num_layers=2, bidirectional=True, proj_size=4),
    "lstm cell": lambda: Loop(nn.LSTMCell),
    "gru cell": lambda: Loop(nn.GRUCell),
    "rnn cell": lambda: Loop(nn.RNNCell),
    "added": Beside,
    "cross-attention": Cross,
    "decoder": Decoder,
    "separate": Separate,
    "separate without bias": lambda: Separate(bias=False),
}
ATTENTION = ("cross-attention", "decoder", "separate", "separate without bias")
every = pytest.mark.parametrize("name", NETS)
seeds = pytest.mark.parametrize("seed", range(2))


def begun(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    net = NETS[name]().double().eval()
    return net, (ASKED, GIVEN) if name in ATTENTION else (X,)


def closed(net: nn.Module, found: Any, seed: int) -> None:
    """Random masks on all units that take gates, one open at least."""
    generator = torch.Generator().manual_seed(seed)
    for site in sites(net, found, "units"):
        gate = MaskGate(site.shape)
        mask = torch.rand(site.shape, generator=generator) < 0.6
        mask[0] = True
        gate.choose(mask)
        put_gate(dict(net.named_modules()), site, gate)


@every
@seeds
def test_what_is_closed_is_what_removal_takes(name: str, seed: int) -> None:
    net, x = begun(name)
    found = wiring(net, x)
    model = CostModel.of(net, found)
    dense = measure(net, x)
    assert (float(model().parameters), float(model().macs)) == (dense.parameters, dense.macs)
    closed(net, found, seed)
    assert any(hasattr(module, "unit_gate") for _, module in net.named_modules())
    cost = model(live(openness(net, found, support), found))
    with torch.no_grad():
        before = net(*x)
        folded = copy.deepcopy(net)
        release(folded)
        assert torch.allclose(folded(*x), before, atol=1e-13)
        small, _ = compact(folded, x)
        assert torch.allclose(small(*x), before, atol=1e-12)
    left = measure(small, x)
    assert (left.parameters, left.macs) == (float(cost.parameters), float(cost.macs))


@pytest.mark.parametrize("name", [name for name in NETS if name not in (*ATTENTION, "added")])
def test_a_gate_multiplies_what_the_state_is_made_of(name: str) -> None:
    net, _ = begun(name)
    layer = net.cell if isinstance(net, Loop) else net.cells
    assert isinstance(layer, nn.Module)
    x = X[:, 0] if isinstance(net, Loop) else torch.randn(3, 4, 4, dtype=F64)
    naive, count = copy.deepcopy(layer), hidden_count(layer)
    z = torch.rand(count, dtype=F64)
    with torch.no_grad():
        start = 0
        for end in (end for ways in suffixes(naive) for end in ways):
            first = 0 if gates_of(naive) == 1 else 2 * 6
            for unit in range(6):
                for leaf in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    if getattr(naive, leaf + end, None) is not None:
                        getattr(naive, leaf + end)[first + unit] *= z[start + unit]
            start += 6
            if getattr(naive, "proj_size", 0):
                getattr(naive, f"weight_hr{end}").mul_(z[start : start + 4, None])
                start += 4
    assert start == count

    class Given(MaskGate):
        def value(self) -> Tensor:
            return z

    put(layer, "units", Given((count,)))
    expected, found = naive(x), layer(x)
    for one, other in zip(
        torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(expected), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-13)
    release(layer)
    assert type(layer) is type(naive)
    assert all(torch.equal(p, naive.get_parameter(n)) for n, p in layer.named_parameters())


@pytest.mark.parametrize("name", ["lstm", "both directions", "projected", "gru cell", "cross-attention", "separate"])
def test_a_budget_is_met_and_training_goes_on_bit_for_bit(name: str) -> None:
    def attached() -> tuple[nn.Module, tuple[Tensor, ...], pr.Run, torch.optim.Optimizer]:
        net, x = begun(name)
        run = pr.attach(net.train(), pr.L0(price=pr.Budget(params=0.5), at="units"), x, steps=24)
        return net, x, run, torch.optim.Adam(run.parameter_groups(1e-2))

    def train(net: nn.Module, x: tuple[Tensor, ...], run: pr.Run, opt: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            opt.zero_grad()
            (net(*x).pow(2).mean() + run.penalty()).backward()
            run.step(opt)

    net, x, run, opt = attached()
    dense = measure(begun(name)[0], x).parameters
    train(net, x, run, opt, 10)
    saved = copy.deepcopy((net.state_dict(), opt.state_dict(), torch.get_rng_state()))
    train(net, x, run, opt, 14)
    told, small = run.cost(support), run.finish()
    left = measure(small, x).parameters
    assert left == float(told.parameters) <= 0.5 * dense
    with torch.no_grad():
        assert torch.allclose(small(*x), net.eval()(*x), atol=1e-12)
    again, _, more, other = attached()
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    train(again, x, more, other, 14)
    assert same_state(net.state_dict(), again.state_dict())


@pytest.mark.filterwarnings("ignore:more went than asked:paring.ParingWarning")
@pytest.mark.parametrize("name", ["lstm", "projected", "gru cell"])
def test_prune_takes_hidden_units(name: str) -> None:
    net, (x,) = begun(name)
    small, _ = pr.prune(
        net,
        [(x, Y)],
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        to=pr.Budget(params=0.5),
        epochs=0,
    )
    assert sum(p.numel() for p in small.parameters()) <= 0.5 * sum(p.numel() for p in net.parameters())
    layer = small.cell if isinstance(net, Loop) else small.cells
    assert int(layer.hidden_size) < 6 or 0 < int(layer.proj_size) < 4


def test_groups_name_hidden_units() -> None:
    net, x = begun("projected")
    rows = {row.layers[0]: row for row in pr.groups(net, x)}
    assert (rows["cells.l0"].units, rows["cells.l0.hr"].units) == (6, 4)
    assert rows["cells.l0"].gates == ("cells",)
    assert rows["cells.l0"].coupling == "layers and directions keep as many"
    with pytest.raises(ValueError, match="layer 'fc' cannot be gated: network output"):
        sites(net, wiring(net, x), "units:fc")
    assert [site.layer for site in sites(net, wiring(net, x), "units:LSTM")] == ["cells.l0", "cells.l0.hr"]


def test_the_l2_term_counts_all_rows_of_a_unit_while_it_is_open() -> None:
    net, x = begun("lstm")
    run = pr.attach(net, pr.L0(price=1e-3, at=["units:LSTM", "weights:cells.weight_hh_l0"], l2=1.0), x)
    held = {name: gate for name, _, gate in gates(net) if isinstance(gate, StochasticGate)}
    units = next(gate for gate in held.values() if gate.shape == (6,)).prob_open().repeat(4)
    single = held["cells.weight_hh_l0"].prob_open()
    expected = torch.zeros((), dtype=F64)
    for name, p in net.named_parameters():
        if "gate" not in name:
            square = p.pow(2)
            if name.startswith("cells."):
                square = square * (units[:, None] if p.dim() == 2 else units)
            expected = expected + (square * (single if name == "cells.weight_hh_l0" else 1)).sum()
    found = expected_l2_of(net, run.probe.wiring)
    assert torch.allclose(found, 0.5 * expected)


@pytest.mark.parametrize("name", ["cross-attention", "separate", "separate without bias"])
def test_the_l2_term_counts_all_rows_of_a_head_while_it_is_open(name: str) -> None:
    net, x = begun(name)
    run = pr.attach(net, pr.L0(price=1e-3, at="heads", l2=1.0), x)
    (gate,) = (gate for _, _, gate in gates(net) if isinstance(gate, StochasticGate))
    heads = gate.prob_open().repeat_interleave(4)
    expected = torch.zeros((), dtype=F64)
    for one, p in net.named_parameters():
        if "gate" in one:
            continue
        chance: Tensor | float = 1.0
        if "in_proj" in one or "_proj_weight" in one:
            rows = heads.repeat(len(p) // 16)
            chance = rows.view(-1, *[1] * (p.dim() - 1))
        expected = expected + (p.pow(2) * chance).sum()
    found = expected_l2_of(net, run.probe.wiring)
    assert torch.allclose(found, 0.5 * expected)


def test_states_that_are_given_or_shown_keep_their_units() -> None:
    class Shown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.fc = nn.GRU(5, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            out, state = self.cells(x)
            return self.fc(out), state

    class Begun(Shown):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.fc(self.cells(x, torch.ones(1, len(x), 6, dtype=x.dtype))[0]), x

    for net, reason in ((Shown(), "network output"), (Begun(), "no Linear")):
        found = wiring(net.double(), X)
        with pytest.raises(ValueError, match=reason):
            sites(
                net, found, "units:cells.l0" if isinstance(net, Shown) and not isinstance(net, Begun) else "units:GRU"
            )


def test_factors_of_all_rows() -> None:
    layer = nn.LSTM(3, 2, proj_size=1)
    found = unit_factors(layer, torch.tensor([2.0, 3.0, 5.0]), candidates=False)
    assert found["bias_hh_l0"].tolist() == [2.0, 3.0] * 4
    assert found["weight_ih_l0"].tolist() == [[2.0], [3.0]] * 4
    assert found["weight_hr_l0"].tolist() == [[5.0]]
