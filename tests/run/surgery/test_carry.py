"""One cut for a network and for what optimizers remember of it, on layers small enough to write the numbers down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from paring.core import put, share
from paring.gates import MaskGate
from paring.run.distributed.wrappers import note_renewed
from paring.run.surgery.carry import (
    Cuts,
    check_network,
    cut_network,
    cut_state,
    gate_dims,
    shapes_of,
    shared_cuts,
    tensors_of,
)
from paring.run.surgery.gated_select import GatedSelectLinear

KEEP = torch.tensor([0, 2])


def counting(*shape: int) -> Tensor:
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)


def cut_of(opt: torch.optim.Optimizer, parameter: nn.Parameter, dims: dict[int, Tensor]) -> dict[str, Tensor]:
    """New tensors by key, for one parameter; its state is still the old one."""
    found = cut_state(opt, {parameter: parameter.shape}, {parameter: dims})
    assert all(state is opt.state[parameter] for state, _, _ in found)
    return {key: small for _, key, small in found}


def test_moments_keep_what_stays_and_numbers_stay_numbers() -> None:
    p = nn.Parameter(torch.zeros(3, 2))
    opt = torch.optim.SGD([p], lr=0.1)
    whole = counting(3, 2)
    opt.state[p] = {
        **{"first": whole.clone(), "step": torch.tensor(7.0), "count": torch.tensor([7.0]), "why": "none", "no": None},
        **{"rows": whole[:, :1].clone(), "columns": whole[:1].clone()},
    }
    found = cut_of(opt, p, {0: KEEP, 1: torch.tensor([1])})
    assert set(found) == {"first", "rows", "columns"}
    assert found["first"].tolist() == [[2.0], [6.0]]
    assert found["rows"].tolist() == [[1.0], [5.0]]  # of size 1 along the columns: a mean over them
    assert found["columns"].tolist() == [[2.0]]
    assert torch.equal(opt.state[p]["first"], whole), "nothing is changed yet"


def test_adafactor_keeps_the_sum_of_what_a_mean_was_taken_over() -> None:
    p = nn.Parameter(torch.zeros(3, 4))
    opt = torch.optim.Adafactor([p])
    opt.state[p] = {"step": torch.tensor(1.0), "row_var": counting(3, 1), "col_var": counting(1, 4)}
    found = cut_of(opt, p, {0: KEEP})
    assert found["row_var"].tolist() == [[1.0], [3.0]]
    assert torch.allclose(found["col_var"], counting(1, 4) * 3 / 2)
    found = cut_of(opt, p, {1: torch.tensor([3])})
    assert torch.equal(found["row_var"], counting(3, 1) * 4)
    assert found["col_var"].tolist() == [[4.0]]


def test_parameters_that_are_not_cut_or_have_no_state_are_left_out() -> None:
    p, q, r = (nn.Parameter(torch.zeros(3)) for _ in range(3))
    opt = torch.optim.SGD([p, q], lr=0.1)
    opt.state[p], opt.state[r] = {"m": counting(3)}, {"m": counting(3)}
    found = cut_state(opt, {x: x.shape for x in (p, q, r)}, {q: {0: KEEP}, p: {0: KEEP}})
    assert [(state is opt.state[p], key, small.tolist()) for state, key, small in found] == [(True, "m", [1.0, 3.0])]
    assert q not in opt.state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_parameters_keep_their_identity_and_layers_know_their_sizes(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).to(dtype)
    net[0].weight.data = counting(3, 2).to(dtype)
    net[0].weight.grad = 10 * counting(3, 2).to(dtype)
    net[1].running_mean = counting(3).to(dtype)
    before = dict(net.named_parameters())
    alive = (net[0].weight * 2).sum()  # a graph that remembers the old shape
    rows = {name: {0: KEEP} for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")}
    cut_network(net, Cuts(rows | {"2.weight": {1: KEEP}}))
    assert dict(net.named_parameters()) == before
    assert shapes_of(net) == {
        **{"0.weight": (2, 2), "0.bias": (2,), "1.weight": (2,), "1.bias": (2,), "2.weight": (2, 2), "2.bias": (2,)}
    }
    assert net[0].weight.tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert net[0].weight.grad.tolist() == [[10.0, 20.0], [50.0, 60.0]]
    assert net[0].bias.grad is None
    assert net[1].running_mean.tolist() == [1.0, 3.0]
    assert (net[0].out_features, net[1].num_features, net[2].in_features) == (2, 2, 2)
    assert all(p.dtype == dtype for p in net.parameters())
    net(torch.randn(4, 2, dtype=dtype)).sum().backward()
    assert net[0].weight.grad.shape == (2, 2)
    del alive


def test_a_tied_parameter_is_cut_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    net[0].weight.data = counting(4, 4)
    cut_network(net, Cuts({"0.weight": {0: KEEP}, "1.weight": {0: KEEP}}))
    assert net[0].weight is net[1].weight
    assert torch.equal(net[0].weight, counting(4, 4)[KEEP])
    assert net[0].out_features == net[1].out_features == 2


def test_columns_that_a_layer_reads_and_sizes_of_norms_without_tensors() -> None:
    net = nn.Sequential(nn.InstanceNorm1d(3), nn.Flatten(), nn.Linear(3, 2))
    put(net[2], "weights", MaskGate((2, 3)))
    cut_network(net, Cuts({"2.weight": {1: KEEP}, "2.weight_gate.mask": {1: KEEP}}, {"2": KEEP}, {"0": 2}))
    assert net[0].num_features == 2
    assert isinstance(net[2], GatedSelectLinear)
    assert net[2].reads.tolist() == [0, 2]
    cut_network(net, Cuts({}, {"2": None}))
    assert not hasattr(net[2], "reads")


def test_nothing_to_cut() -> None:
    assert not Cuts()
    assert Cuts({"0.weight": {0: KEEP}})
    assert Cuts({"a": {0: KEEP}})("b", counting(3)).tolist() == [1.0, 2.0, 3.0]


def test_a_gate_knows_which_of_its_entries_are_left() -> None:
    net = nn.Sequential(nn.Linear(2, 4))
    put(net[0], "units", gate := MaskGate((4,)))
    for left in ([0, 2, 3], [1, 2]):
        keep = {0: torch.tensor(left)}
        cut_network(net, Cuts({"0.weight": keep, "0.bias": keep} | tensors_of("0.unit_gate", gate, keep)))
    assert (gate.shape, gate.dense_shape) == ((2,), (4,))
    assert gate.part(counting(4)).tolist() == [3.0, 4.0]
    assert gate.whole(counting(2)).tolist() == [0.0, 0.0, 1.0, 2.0]


def test_the_tensors_of_a_gate_are_those_of_its_shape() -> None:
    gate = MaskGate((3, 2))
    gate.set_aside(nn.Parameter(torch.zeros(3, 2)))
    gate.register_buffer("count", torch.zeros(()))
    gate.note_cut(torch.Size([4, 3]), {0: torch.tensor([0, 1, 3])})
    assert tensors_of("a.weight_gate", gate, {0: KEEP}) == {
        "a.weight_gate.mask": {0: KEEP},
        "a.weight_gate.aside": {0: KEEP},
    }
    units = MaskGate((3,))
    units.note_cut(torch.Size([4]), {0: torch.tensor([0, 1, 3])})  # what it remembers of that has its shape
    assert list(tensors_of("a", units, {0: KEEP})) == ["a.mask"]


def shared() -> tuple[nn.Sequential, MaskGate, MaskGate]:
    """Two linear layers: the first holds a gate of 3 and one of 2 units, the second the latter again."""
    net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
    one, two = MaskGate((3,)), MaskGate((2,))
    share(net[0], one, torch.tensor([0, 1, 2, -1, -1]))
    share(net[0], two, torch.tensor([-1, -1, -1, 1, 0]))
    share(net[2], two, torch.tensor([1, -1, 0]))
    return net, one, two


@pytest.mark.parametrize(
    ("first", "second", "ones", "twos"),
    [
        ([0, 2, 3, 4], None, [0, 2], None),
        ([1, 2, 3, 4], None, [1, 2], None),
        ([0, 1, 2, 3], None, None, None),  # the other layer still has that unit
        ([0, 1, 2, 3], [0, 1], None, [1]),
        ([0, 1, 2, 4], [1, 2], None, [0]),
        ([0, 4], [1, 2], [0], [0]),
        (None, [1], None, None),  # as the first layer does
        (None, None, None, None),
    ],
)
def test_entries_of_a_shared_gate_go_when_they_act_nowhere_any_more(
    first: Any, second: Any, ones: Any, twos: Any
) -> None:
    net, _, _ = shared()
    rows = {name: {0: torch.tensor(v)} for name, v in (("0.weight", first), ("2.weight", second)) if v is not None}
    found = shared_cuts(net, rows)
    path = "0.unit_gate.parts."
    wanted = {f"{path}{n}.mask": v for n, v in ((0, ones), (1, twos)) if v is not None}
    assert {name: dims[0].tolist() for name, dims in found.items()} == wanted


def test_a_shared_gate_is_cut_once_and_stays_in_step_with_its_layers() -> None:
    net, one, two = shared()
    one.close(torch.tensor([False, True, False]))
    two.close(torch.tensor([False, True]))
    for rows, columns in (([0, 2, 3, 4], [1, 2]), ([0, 1, 3], [0, 1])):
        kept = {f"0.{leaf}": {0: torch.tensor(rows)} for leaf in ("weight", "bias")}
        kept |= {"2.weight": {0: torch.tensor(columns), 1: torch.tensor(rows)}, "2.bias": {0: torch.tensor(columns)}}
        cut_network(net, Cuts(kept | shared_cuts(net, kept)))
    assert (one.shape, one.dense_shape) == ((2,), (3,))
    assert (two.shape, two.dense_shape) == ((1,), (2,))
    assert one.part(counting(3)).tolist() == [1.0, 3.0]
    assert two.part(counting(2)).tolist() == [1.0]
    assert net[0].unit_gate().tolist() == [1.0, 1.0, 1.0]
    assert net[2].unit_gate().tolist() == [1.0, 1.0]
    one.close(torch.tensor([False, True]))
    assert net[0].unit_gate().tolist() == [1.0, 0.0, 1.0]


ROWS, COLUMNS = torch.tensor([0]), torch.tensor([1])


@pytest.mark.parametrize(
    ("layer", "units", "inputs"),
    [(nn.Linear(2, 3), ROWS, COLUMNS), (nn.Conv2d(2, 3, 1), ROWS, COLUMNS), (nn.Embedding(3, 2), COLUMNS, ROWS)],
)
def test_gates_are_cut_like_the_weight_that_they_sit_on(layer: Any, units: Tensor, inputs: Tensor) -> None:
    both = {0: ROWS, 1: COLUMNS}
    assert gate_dims(layer, "weights", both) == both
    assert gate_dims(layer, "units", both) == {0: units}
    assert gate_dims(layer, "inputs", both) == (
        {} if isinstance(layer, nn.Embedding) else {0: inputs}
    )  # an index has none
    for kind in ("weights", "units", "inputs"):
        assert gate_dims(layer, kind, {}) == {}
    alone = {1: COLUMNS} if inputs is ROWS else {0: ROWS}  # the units alone
    assert gate_dims(layer, "inputs", alone) == {}
    assert gate_dims(layer, "units", {1 - next(iter(alone)): ROWS}) == {}


def test_input_gates_of_grouped_convolutions_lose_whole_groups() -> None:
    layer: Any = nn.Conv2d(6, 9, 1, groups=3)  # units 3 to a group, inputs 2 to a group
    found = gate_dims(layer, "inputs", {0: torch.tensor([0, 1, 2, 6, 7, 8])})
    assert {d: keep.tolist() for d, keep in found.items()} == {0: [0, 1, 4, 5]}
    assert gate_dims(layer, "inputs", {1: torch.tensor([0])}) == {}
    found = gate_dims(layer, "units", {0: torch.tensor([0, 1, 2])})
    assert {d: keep.tolist() for d, keep in found.items()} == {0: [0, 1, 2]}


@pytest.fixture
def one_process() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_wrapper_that_would_stop_averaging_is_refused(one_process: None) -> None:
    net, other = (nn.Sequential(nn.Linear(2, 2)) for _ in range(2))
    wrapper = DistributedDataParallel(nn.Sequential(net, nn.ReLU()))
    check_network(other)
    with pytest.raises(RuntimeError, match="wrapped in DistributedDataParallel"):
        check_network(net)
    note_renewed(wrapper)
    check_network(net)


def test_a_sharded_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paring.run.surgery.carry.is_sharded", lambda _: True)
    with pytest.raises(RuntimeError, match=r"this Linear are sharded .*finish\(\) gathers the network"):
        check_network(nn.Linear(2, 2))
