"""What a checkpoint says of cuts, multipliers and tensors is looked at entry by entry before anything is changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import paring as pr
from paring.core import STATE_FIELDS, TrainingState, attached
from paring.testing import same_state

INDEX = torch.tensor([0, 2])


@pytest.fixture(scope="module")
def run() -> pr.Run:
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    made = pr.attach(net, pr.L0(price=pr.Budget(params=0.5), at="units"), torch.randn(3, 4), steps=100)
    attached(net).state.tensors["mean"] = torch.zeros(3)
    return made


def whole() -> dict[str, Any]:
    """A state in which something stands in every field."""
    rows = {
        name: {0: INDEX} for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    }
    return {
        "kept": rows | {"2.weight": {1: INDEX}},
        "reads": {},
        "sizes": {"1": 2},
        "multipliers": {"units": {"parameters": torch.tensor(0.5)}},
        "tensors": {"mean": torch.ones(3)},
    }


def test_the_plain_form_is_a_copy_and_comes_back() -> None:
    state, plain = TrainingState(), whole()
    state.take_over(plain)
    assert same_state(state.plain(), plain)
    assert set(state.plain()) == set(STATE_FIELDS)
    plain["kept"]["0.weight"][0] = torch.tensor([1])
    plain["tensors"]["mean"].zero_()
    assert torch.equal(state.kept["0.weight"][0], INDEX)
    assert bool((state.tensors["mean"] == 1).all())


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("kept", [], "'kept' in the method's state is a list; it must be a dict"),
        ("kept", {"9.weight": {0: INDEX}}, "'9.weight' in 'kept' of the method's state is of a tensor that"),
        ("kept", {"0.weight": {}}, "is no dict of dimensions"),
        ("kept", {"0.weight": {2: INDEX}}, "has no dimension 2"),
        ("kept", {"0.weight": {True: INDEX}}, "has no dimension True"),
        ("kept", {"0.weight": {0: torch.tensor([2, 0])}}, "is no sorted list of indices"),
        ("kept", {"0.weight": {0: torch.tensor([0, 6])}}, "is no sorted list of indices"),
        ("kept", {"0.weight": {0: [0, 2]}}, "is no sorted list of indices"),
        ("reads", {"1": INDEX}, "is no sorted list of columns of a linear layer"),
        ("reads", {3: INDEX}, "is no sorted list of columns of a linear layer"),
        ("sizes", {"0": 2}, "is no size of a norm"),
        ("sizes", {"1": 0}, "is no size of a norm"),
        ("sizes", {"1": True}, "is no size of a norm"),
        ("multipliers", {"units": {}}, "is no dict of costs"),
        ("multipliers", {"units": {"parameters": 0.5}}, "has no number for 'parameters'"),
        ("multipliers", {"units": {"parameters": torch.tensor(-1.0)}}, "has no number for 'parameters'"),
        ("multipliers", {"units": {"parameters": torch.tensor(torch.nan)}}, "has no number for 'parameters'"),
        ("multipliers", {"units": {3: torch.tensor(1.0)}}, "has no number for 3"),
        ("tensors", {"mean": torch.zeros(4)}, r"is of shape \(4,\)"),
        ("tensors", {"mean": torch.full((3,), torch.inf)}, "is not finite"),
        ("tensors", {"mean": 3}, "is 3, and no tensor"),
        ("further", {}, "'further' is no field of the method's state"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(run: pr.Run, field: str, value: Any, why: str) -> None:
    before, said = copy.deepcopy(run.net.state_dict()), attached(run.net).state.plain()
    with pytest.raises(ValueError, match=why):
        run.cut_like({**whole(), field: value})
    assert same_state(run.net.state_dict(), before)
    assert same_state(attached(run.net).state.plain(), said)


def test_a_state_that_fits_is_taken_over(run: pr.Run) -> None:
    other = copy.deepcopy(run)
    state = whole()
    gate = next(name for name, _ in other.net.named_parameters() if name.endswith("log_alpha"))
    state["kept"][gate] = {0: INDEX}
    other.cut_like(state)
    assert other.net[0].weight.shape == (2, 4)
    assert same_state(attached(other.net).state.plain(), state)
