"""Hidden units of recurrent layers: what stays zero from the start, or is not read, goes exactly."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from paring.core.file_error import FileError
from paring.core.recurrent import GATES
from paring.files import load, save
from paring.removal import compact

LAYERS: dict[str, type[nn.RNNBase]] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}


class Reader(nn.Module):
    """A recurrent layer, and what reads its outputs or its last state; zeros: the state is given, with its size."""

    def __init__(self, layer: nn.RNNBase, reads: str = "out", zeros: bool = False) -> None:
        super().__init__()
        self.layer, self.reads, self.zeros = layer, reads, zeros
        ways = 2 if layer.bidirectional else 1
        self.fc = nn.Linear((layer.proj_size or layer.hidden_size) * (1 if reads == "state" else ways), 3)

    def forward(self, x: Tensor) -> Tensor:
        start = None
        if self.zeros:
            h = x.new_zeros(1, x.shape[0], 12)
            start = (h, torch.zeros(1, x.shape[0], 12, dtype=x.dtype)) if isinstance(self.layer, nn.LSTM) else h
        out, state = self.layer(x, start)
        last: Tensor = state[0] if isinstance(state, tuple) else state
        made: Tensor = self.fc(last[-1] if self.reads == "state" else out)
        return made


def silence(layer: nn.RNNBase, units: Iterable[int], end: str) -> None:
    """Zero what a unit's candidate is made of: its row in an RNN, of n in a GRU, of g in an LSTM."""
    gates = GATES[type(layer)]
    first = 0 if gates == 1 else 2 * layer.hidden_size
    rows = torch.tensor([first + unit for unit in units])
    with torch.no_grad():
        for leaf in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            if hasattr(layer, leaf + end):
                getattr(layer, leaf + end).index_fill_(0, rows, 0.0)


def made(name: str, **options: object) -> nn.RNNBase:
    torch.manual_seed(0)
    settings: dict[str, object] = {"batch_first": True, **options}
    return LAYERS[name](5, 12, **settings)  # type: ignore[arg-type]


def checked(net: nn.Module, *, train: bool = False) -> nn.Module:
    net = net.double().train(train)
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    small, report = compact(net, x)
    assert not report.rolled_back
    for length in (1, 7):
        other = torch.randn(2, length, 5, dtype=torch.float64)
        if report.form == "module":
            torch.testing.assert_close(small(other), net(other), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(small(x), net(x), rtol=1e-12, atol=1e-12)
    return small


def hidden(net: nn.Module, end: str = "_l0") -> int:
    return net.get_parameter(f"layer.weight_hh{end}").shape[0] // GATES[type(net.layer)]  # type: ignore[index]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("train", [False, True])
def test_units_that_stay_zero_go(name: str, train: bool) -> None:
    net = Reader(made(name))
    silence(net.layer, range(4, 9), "_l0")
    small = checked(net, train=train)
    layer = small.layer
    assert isinstance(layer, nn.RNNBase)
    assert (layer.hidden_size, layer.input_size, hidden(small)) == (7, 5, 7)
    assert small.get_parameter("fc.weight").shape == (3, 7)


@pytest.mark.parametrize("name", LAYERS)
def test_units_that_hold_each_other_at_zero_go_together(name: str) -> None:
    net = Reader(made(name))
    silence(net.layer, [2, 3], "_l0")
    gates = GATES[type(net.layer)]
    with torch.no_grad():  # each of the two reads the other one, and zero is all that it reads
        first = 0 if gates == 1 else 24
        net.layer.weight_hh_l0[first + 2, 3] = net.layer.weight_hh_l0[first + 3, 2] = 0.7
    assert hidden(checked(net)) == 10
    with torch.no_grad():  # but not once one of them reads a third
        net.layer.weight_hh_l0[first + 3, 5] = 0.7
    assert hidden(checked(net)) == 12


@pytest.mark.parametrize("name", LAYERS)
def test_units_that_nobody_reads_go(name: str) -> None:
    net = Reader(made(name))
    with torch.no_grad():
        net.layer.weight_hh_l0[:, [1, 6]] = 0
        net.layer.weight_hh_l0[[1, 6], 6] = 0.3  # they may read each other
        net.fc.weight[:, [1, 6]] = 0
    assert hidden(checked(net)) == 10


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("reads", ["out", "state"])
def test_stacks_in_both_directions_keep_as_many_units_everywhere(name: str, reads: str) -> None:
    net = Reader(made(name, num_layers=2, bidirectional=True), reads)
    for place, end in enumerate(("_l0", "_l0_reverse", "_l1", "_l1_reverse")):
        silence(net.layer, range(place, place + 3 + (place == 1)), end)
    small = checked(net)
    assert {hidden(small, end) for end in ("_l0", "_l0_reverse", "_l1", "_l1_reverse")} == {9}
    assert small.get_parameter("layer.weight_ih_l1").shape[1] == 18


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projected_states_and_the_cells_behind_them_go() -> None:
    net = Reader(made("LSTM", proj_size=6))
    silence(net.layer, [0, 1], "_l0")
    with torch.no_grad():
        net.layer.weight_hr_l0[:, 4] = 0  # a cell that is not read
        net.layer.weight_hr_l0[3] = 0  # a state that is zero
    small = checked(net)
    assert small.get_parameter("layer.weight_hr_l0").shape == (5, 9)
    assert small.get_parameter("layer.weight_hh_l0").shape == (36, 5)
    assert small.get_parameter("fc.weight").shape == (3, 5)


def test_a_gate_that_is_zero_or_a_bias_that_is_none_is_not_dead() -> None:
    for rows, leaf in ((slice(36, 40), "weight_ih_l0"), (slice(24, 28), "weight_ih_l0")):
        net = Reader(made("LSTM"))
        with torch.no_grad():
            getattr(net.layer, leaf)[rows] = 0
        assert hidden(checked(net)) == 12
    net = Reader(made("GRU"))
    silence(net.layer, [3], "_l0")
    with torch.no_grad():  # one half of n, and the other half against it
        net.layer.bias_ih_l0[27], net.layer.bias_hh_l0[27] = 0.5, -0.5
    assert hidden(checked(net)) == 12


def test_inputs_that_are_dead_go_and_units_that_feed_a_layer_are_followed() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.layer, self.fc = nn.Linear(5, 8), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.fc(self.layer(self.emb(x))[0][:, -1])
            return made

    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.emb.weight[[1, 2]] = 0
        net.emb.bias[[1, 2]] = 0
        net.layer.weight_ih_l0[:, 5] = 0
    small = checked(net)
    assert small.get_parameter("emb.weight").shape == (5, 5)
    assert small.get_parameter("layer.weight_ih_l0").shape == (48, 5)


def test_a_state_from_outside_keeps_all() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.fc = nn.GRU(5, 12, batch_first=True), nn.Linear(12, 2)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            made: Tensor = self.fc(self.layer(x, h[None])[0])
            return made

    torch.manual_seed(0)
    net = Net().double().eval()
    silence(net.layer, [1], "_l0")
    inputs = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 12, dtype=torch.float64)
    small, _ = compact(net, inputs)
    assert hidden(small) == 12


@pytest.mark.parametrize("name", LAYERS)
def test_where_zeros_are_written_with_their_size_the_graph_follows(name: str) -> None:
    net = Reader(made(name), zeros=True)
    silence(net.layer, range(4), "_l0")
    small = checked(net)
    assert small.get_parameter("layer.weight_hh_l0").shape[1] == 8


def test_a_small_layer_is_saved_loaded_copied_and_trained(tmp_path: Path) -> None:
    net = Reader(made("LSTM", num_layers=2))
    for end in ("_l0", "_l1"):
        silence(net.layer, range(4), end)
    small = checked(net).float()
    save(small, tmp_path / "small.safetensors")
    loaded = load(lambda: Reader(made("LSTM", num_layers=2)), tmp_path / "small.safetensors")
    x = torch.randn(2, 6, 5)
    for one in (loaded, copy.deepcopy(small)):
        torch.testing.assert_close(one(x), small(x))
        optimizer = torch.optim.SGD(one.parameters(), 0.1)
        before = one(x)
        one(x).sum().backward()
        optimizer.step()
        assert not torch.equal(one(x), before)
        one.layer.flatten_parameters()  # type: ignore[union-attr,operator]


def test_a_file_whose_tensors_do_not_fit_each_other_is_refused(tmp_path: Path) -> None:
    net = Reader(made("GRU", num_layers=2))
    with torch.no_grad():
        net.layer.weight_ih_l1 = nn.Parameter(torch.zeros(36, 7))
    save(net, tmp_path / "odd.safetensors")
    with pytest.raises(FileError, match=r"'layer', a GRU, has a weight_ih_l1 of \(36, 7\), where \(36, 12\) fits"):
        load(lambda: Reader(made("GRU", num_layers=2)), tmp_path / "odd.safetensors")


class Loop(nn.Module):
    """A cell in a loop; given: its first state comes from a layer."""

    def __init__(self, cell: nn.RNNCellBase, given: bool) -> None:
        super().__init__()
        self.layer, self.given, self.fc = cell, given, nn.Linear(12, 3)
        self.first = nn.Linear(5, 12)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        if self.given:
            h = self.first(x[:, 0])
            state = (h, h.sin()) if isinstance(self.layer, nn.LSTMCell) else h
        for t in range(x.shape[1]):
            state = self.layer(x[:, t], state)
        made: Tensor = self.fc(state[0] if isinstance(state, tuple) else state)
        return made


CELLS: dict[str, type[nn.RNNCellBase]] = {"RNN": nn.RNNCell, "GRU": nn.GRUCell, "LSTM": nn.LSTMCell}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("given", [False, True])
def test_cells_in_loops_lose_units(name: str, given: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Loop(CELLS[name](5, 12), given).double().eval()  # type: ignore[arg-type,call-arg]
    silence(net.layer, range(4, 9), "")  # type: ignore[arg-type]
    with torch.no_grad():
        net.first.weight[4:8], net.first.bias[4:8] = 0, 0  # one unit begins with something else
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    small, report = compact(net, x)
    assert not report.rolled_back
    torch.testing.assert_close(small(x), net(x), rtol=1e-12, atol=1e-12)
    left = 8 if given else 7
    assert small.get_parameter("layer.weight_hh").shape == (GATES[type(net.layer)] * left, left)
    assert (small.layer.hidden_size, small.fc.in_features) == (left, left)  # type: ignore[union-attr]
    save(small, tmp_path / "small.safetensors")
    loaded = load(lambda: Loop(CELLS[name](5, 12), given).double(), tmp_path / "small.safetensors")  # type: ignore[arg-type,call-arg]
    torch.testing.assert_close(loaded(x), small(x), rtol=0, atol=0)
