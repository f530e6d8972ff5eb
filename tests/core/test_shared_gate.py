"""One gate on several modules: what each of them shows, and that it is one gate."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from paring.core import Gate, SharedGate, gated_layers, gates, put, release, share


class Fixed(Gate):
    """A gate whose multiplier is its parameter."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    @property
    def shape(self) -> torch.Size:
        return self.z.shape

    def forward(self, batch: int | None = None) -> Tensor:
        return self.z

    def prob_open(self) -> Tensor:
        return self.z / 10

    def value(self) -> Tensor:
        return self.z

    def permanently_closed(self) -> Tensor:
        return self.z == 0


class Each(Fixed):
    """One multiplier per example: the parameter plus the number of the example."""

    @property
    def per_example(self) -> bool:
        return self.training

    def forward(self, batch: int | None = None) -> Tensor:
        return self.z + torch.arange(batch or 1)[:, None] if self.training else self.z


def test_rows_are_gathered() -> None:
    one, two = Fixed([2.0, 3.0]), Fixed([5.0, 0.0, 7.0])
    spread = SharedGate([one, two], torch.tensor([4, -1, 0, 3, 2, 0]))
    wanted = [7.0, 1.0, 2.0, 0.0, 5.0, 2.0]
    for found in (spread(), spread(9), spread.value()):
        assert found.tolist() == wanted
    assert spread.prob_open().tolist() == [0.7, 1.0, 0.2, 0.0, 0.5, 0.2]
    assert spread.support().tolist() == [True, True, True, False, True, True]
    assert spread.permanently_closed().tolist() == [False, False, False, True, False, False]
    assert spread.shape == (6,)
    assert [spread.part_at(row) for row in range(6)] == [two, None, one, two, two, one]
    told = [(gate, rows.tolist(), entries.tolist()) for gate, rows, entries in spread.entries()]
    assert told == [(one, [2, 5], [0, 0]), (two, [0, 3, 4], [2, 1, 0])]
    (grad,) = torch.autograd.grad(spread().sum(), one.z)
    assert grad.tolist() == [2.0, 0.0]


def test_one_sample_per_example_beside_one_for_all() -> None:
    spread = SharedGate([Each([1.0, 2.0]), Fixed([5.0])], torch.tensor([1, 2, -1, 0]))
    assert spread.per_example
    assert spread(3).tolist() == [[2.0, 5.0, 1.0, 1.0], [3.0, 5.0, 1.0, 2.0], [4.0, 5.0, 1.0, 3.0]]
    assert spread.eval()(3).tolist() == [2.0, 5.0, 1.0, 1.0]


@pytest.mark.parametrize("index", [[0, 2], [-2, 0]])
def test_an_index_outside_is_refused(index: list[int]) -> None:
    with pytest.raises(ValueError, match=r"outside -1..1, the entries of its 1 gates"):
        SharedGate([Fixed([1.0, 2.0])], torch.tensor(index))


def test_shared_by_two_layers() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4)).double()
    gate, x = Fixed([0.5, 0.0]), torch.randn(5, 3, dtype=torch.float64)
    w = [p.detach().clone() for p in net.parameters()]
    share(net[0], gate, torch.tensor([1, 0]))
    share(net[1], gate, torch.tensor([-1, 0, 1, 0]))
    y = (x @ w[0].T + w[1]) * torch.tensor([0.0, 0.5])
    y = (y @ w[2].T + w[3]) * torch.tensor([1.0, 0.5, 0.0, 0.5])
    assert torch.allclose(net(x), y, atol=1e-14)
    assert [(name, kind) for name, kind, _ in gates(net)] == [("0", "units")]
    assert len([p for p in net.parameters() if p is gate.z]) == 1
    assert [name for name, _ in gated_layers(net)] == ["0", "1"]
    release(net)
    assert torch.allclose(net(x), y, atol=1e-14)
    assert [type(m) for m in net] == [nn.Linear, nn.Linear]
    assert list(net.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_several_gates_on_one_layer() -> None:
    net = nn.Sequential(nn.Linear(3, 4)).double()
    one, two = Fixed([2.0, 3.0]), Fixed([0.0])
    share(net[0], one, torch.tensor([1, -1, -1, 0]))
    share(net[0], two, torch.tensor([-1, -1, 0, -1]))
    assert net[0].unit_gate().tolist() == [3.0, 1.0, 0.0, 2.0]
    assert [gate for _, _, gate in gates(net)] == [one, two]
    with pytest.raises(ValueError, match="1 units of this module already have a gate"):
        share(net[0], Fixed([1.0]), torch.tensor([0, -1, -1, -1]))
    with pytest.raises(ValueError, match=r"needs shape \(4,\), got \(3,\)"):
        share(net[0], Fixed([1.0]), torch.tensor([0, -1, -1]))
    other = nn.Linear(3, 1)
    put(other, "units", Fixed([1.0]))
    with pytest.raises(ValueError, match="already has a gate at 'units'"):
        share(other, one, torch.tensor([0]))


def test_copies_keep_the_tie() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    gate = Fixed([0.5, 2.0])
    for layer in net:
        share(layer, gate, torch.tensor([0, 1]))
    for copy_ in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert len(list(gates(copy_))) == 1
        next(gates(copy_))[2].z.data.zero_()
        assert copy_[0].unit_gate().tolist() == copy_[1].unit_gate().tolist() == [0.0, 0.0]
    assert gate.z.tolist() == [0.5, 2.0]
    state = net.state_dict()
    gate.z.data.zero_()
    net.load_state_dict(state | {key: torch.tensor([4.0, 3.0]).double() for key in state if key.endswith(".z")})
    assert net[1].unit_gate().tolist() == [4.0, 3.0]


def test_a_cut_leaves_rows_and_entries_in_step() -> None:
    one, two = Fixed([2.0, 3.0, 4.0]), Fixed([5.0, 6.0])
    spread = SharedGate([one, two], torch.tensor([0, 1, 2, 3, 4, -1]))
    one.z = nn.Parameter(one.z.detach()[[0, 2]])
    one.note_cut(torch.Size([3]), {0: torch.tensor([0, 2])})
    spread.note_cut(torch.Size([6]), {0: torch.tensor([0, 2, 4, 5])})
    assert spread().tolist() == [2.0, 4.0, 6.0, 1.0]
    assert spread.shape == (4,)
    assert spread.dense_index.tolist() == [0, 1, 2, 3, 4, -1]
    alone = SharedGate([one], torch.tensor([0, 1, 2]))
    alone.note_cut(torch.Size([3]), {0: torch.tensor([0, 2])})
    assert alone().tolist() == [2.0, 4.0]
