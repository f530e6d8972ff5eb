"""Splits are values of the right types, and stratified splits keep every class's share."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paring.data import Dataset, Split, stratified


def make(labels: list[int]) -> Split:
    return Split(torch.arange(len(labels), dtype=torch.float32)[:, None], torch.tensor(labels))


LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=60)


@given(labels=LABELS, data=st.data(), seed=st.integers(0, 2**70))
def test_stratified_divides_class_by_class(labels: list[int], data: st.DataObject, seed: int) -> None:
    whole = make(labels)
    size = data.draw(st.integers(1, len(labels) - 1))
    rest, taken = stratified(whole, size, seed)
    assert len(taken) == size
    assert sorted([*rest.x[:, 0].tolist(), *taken.x[:, 0].tolist()]) == whole.x[:, 0].tolist()
    for part in (rest, taken):
        assert part.x[:, 0].tolist() == sorted(part.x[:, 0].tolist())
        assert [labels[int(row)] for row in part.x[:, 0]] == part.y.tolist()
    for label in set(labels):
        assert abs((taken.y == label).sum().item() - size * labels.count(label) / len(labels)) < 1


def test_equal_classes_give_equal_numbers() -> None:
    _, taken = stratified(make([0, 1, 2, 3] * 25), 0.2, 3)
    assert taken.y.bincount().tolist() == [5, 5, 5, 5]


def test_the_seed_alone_decides_and_for_ever() -> None:
    whole = make([0, 1] * 10)
    rows = [stratified(whole, 6, seed)[1].x[:, 0].tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    assert rows[0] == [2, 3, 8, 11, 13, 18]


def test_every_example_is_as_likely() -> None:
    whole = make([0] * 10)
    hits = torch.zeros(10)
    for seed in range(2000):
        hits[stratified(whole, 3, seed)[1].x[:, 0].long()] += 1
    assert (hits / 2000 - 0.3).abs().max() < 0.06  # 6 standard deviations


def test_nothing_taken_leaves_the_split_itself() -> None:
    whole = make([0, 1, 1])
    for none in (0, 0.0):
        rest, taken = stratified(whole, none, 0)
        assert rest is whole
        assert (len(taken), taken.x.shape, taken.y.dtype) == (0, (0, 1), torch.int64)


@pytest.mark.parametrize("size", [-1, 3, 4, 1.0, -0.1, 1.5, float("nan"), 0.01, 0.99, True, "1", None])
def test_impossible_sizes_are_refused(size: object) -> None:
    with pytest.raises(ValueError, match=r"take|fraction|part"):
        stratified(make([0, 1, 1]), size, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 0.5, None, True])
def test_impossible_seeds_are_refused(seed: object) -> None:
    with pytest.raises(ValueError, match="whole number"):
        stratified(make([0, 1, 1]), 1, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        (torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), "float32"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32), "int64"),
        (torch.zeros(2), torch.zeros(3, dtype=torch.int64), "one class per example"),
        (torch.zeros(2), torch.zeros(2, 1, dtype=torch.int64), "one class per example"),
        (torch.tensor(0.0), torch.tensor(0), "one class per example"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64, device="meta"), "one device"),
    ],
)
def test_a_split_checks_its_tensors(x: torch.Tensor, y: torch.Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Split(x, y)


def test_values_are_frozen_contiguous_and_move_together() -> None:
    split = Split(torch.zeros(3, 2).T, torch.zeros(2, dtype=torch.int64))
    assert split.x.is_contiguous()
    data = Dataset("some", split, split.take(torch.tensor([1])), split, 1, (3,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"  # type: ignore[misc]
    moved = data.to("meta")
    assert {part.x.device.type for part in (moved.train, moved.validation, moved.test)} == {"meta"}
    assert {part.y.device.type for part in (moved.train, moved.validation, moved.test)} == {"meta"}
    assert [len(moved.train), len(moved.validation), len(moved.test)] == [2, 1, 2]
    assert (moved.name, moved.classes, moved.shape) == ("some", 1, (3,))
