"""Every compressor through the door: the bound holds on decoded bytes, the given network stays as it was."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paring.compression import (
    AdaptivePrecision,
    CalibratedRounding,
    Codebooks,
    Combined,
    Compressor,
    DeepCompression,
    EntropyRounding,
    GridRounding,
    Hashed,
    KMeans,
    Objective,
    Smallest,
    SoftSharing,
    Stage,
    Step,
    Training,
    Uniform,
    compress,
)
from paring.compression.tensors import float_bytes, is_binary
from paring.compression.through_file import through_file
from paring.core import ParingWarning, Progress
from paring.methods import GMP
from tests.compression.nets import exactly, mlp_data, problem, task_of

EVERY: tuple[Compressor, ...] = (
    Uniform(),
    KMeans(),
    KMeans(curvature=True, scope="global"),
    GridRounding(steps=(0.2, 0.5, 1.0)),
    GridRounding(steps=(0.2, 0.5), curvature=True),
    CalibratedRounding(),
    AdaptivePrecision(rounds=8),
    AdaptivePrecision(rounds=5, retrain=0.5),
    Codebooks(values=8, rounds=5, mu=1e-2, searches=2),
    Codebooks(values=8, rounds=4, mu=1e-2, augmented=False, scope="kind", zero=True, rate=0.01),
    Codebooks(values=8, rounds=4, mu=1e-2, curvature=True, gradient=True, radius=0.5),
    DeepCompression(densities=(0.8, 0.5), epochs=1, tune=0.5),
    Hashed(shares=(0.5,), epochs=4),
    SoftSharing(components=9, zero=0.5, rates=(1e-4, 1e-3), epochs=2),
    EntropyRounding(rates=(1e-5, 1e-4), epochs=2),
    Smallest(rates=(1e-5, 1e-4), epochs=2),
    Combined((Stage(GMP(density=0.6, every=1), 2),), Codebooks(values=8, keep_zeros=True, rounds=3, mu=1e-2)),
)


def name_of(one: Compressor) -> str:
    return f"{one.name}-{EVERY.index(one)}"


@pytest.mark.parametrize("kind", ["mlp", "tied"])
@pytest.mark.parametrize("compressor", EVERY, ids=name_of)
def test_the_bound_holds_on_decoded_bytes(compressor: Compressor, kind: str) -> None:
    net, objective, error, training = task_of(kind)
    if kind == "tied" and isinstance(compressor, Hashed):
        training = dataclasses.replace(training, lr=3e-3)
    before = copy.deepcopy(net.state_dict())
    seen: list[Step] = []
    example = training_example(training)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ParingWarning)
        found = compress(
            net,
            objective.batches,
            objective.loss,
            max_loss_increase=0.2,
            compressor=compressor,
            training=training,
            error=error.loss,
            max_error_increase=0.1,
            example=example,
            watch=lambda progress: seen.append(progress.step),
        )
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    decoded, size = through_file(found.net)
    assert size == found.bytes
    assert objective(decoded) == found.loss <= found.base_loss + 0.2
    assert found.error is not None
    assert found.base_error is not None
    assert error(decoded) == found.error <= found.base_error + 0.1
    assert tuple(seen) == found.steps
    assert found.steps
    if found.chosen is None:
        assert not any(step.within for step in found.steps)
        assert [one for one in said if found.reason in str(one.message)]
        assert "candidates kept the bound" in found.reason
    else:
        assert not found.reason
        assert not [one for one in said if "comes back as it was given" in str(one.message)]
        assert found.bytes == min(step.bytes for step in found.steps if step.within) < float_bytes(net)
        assert f"→ {found.bytes:,} in a file" in str(found)
        assert f"candidate {found.chosen.number + 1} of {len(found.steps)}" in str(found)
    if kind == "tied" and not isinstance(compressor, Hashed | Combined):
        assert found.net.out.weight is found.net.words.weight


def training_example(training: Training) -> Any:
    return next(iter(training.batches(0)))[0][:2]


@pytest.mark.parametrize("compressor", [one for one in EVERY if not isinstance(one, Hashed | Combined)], ids=name_of)
def test_binary_weights_stay_binary(compressor: Compressor) -> None:
    net, objective, _, training = task_of("mlp")
    net = copy.deepcopy(net)
    hidden = nn.Linear(24, 24)
    with torch.no_grad():
        hidden.weight.copy_(
            torch.where(torch.rand(24, 24, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
        )
    net.insert(3, hidden)
    net.insert(4, nn.ReLU())
    signs = hidden.weight.detach().clone()
    found = compress(
        net,
        objective.batches,
        objective.loss,
        max_loss_increase=math.inf,
        compressor=compressor,
        training=frozen(net, training),
    )
    decoded, _ = through_file(found.net)
    assert found.chosen is not None
    assert torch.equal(decoded.get_parameter("3.weight"), signs)


def frozen(net: nn.Module, training: Training) -> Training:
    """The training whose gradients do not reach binary layers, as the trainer of a binary network sees to."""

    def loss(one: nn.Module, batch: Any) -> torch.Tensor:
        for parameter in one.parameters():
            parameter.requires_grad_(not (parameter.dim() > 1 and is_binary(parameter)))
        return training.loss(one, batch)

    return dataclasses.replace(training, loss=loss)


def test_an_unreachable_bound_gives_the_network_back() -> None:
    net = task_of("mlp")[0]
    objective = exactly(net)
    with pytest.warns(ParingWarning, match="none of 22 candidates kept the bound"):
        found = compress(net, objective.batches, objective.loss, max_loss_increase=0.5, compressor=Uniform(bits=(2,)))
    assert found.chosen is None
    assert found.loss == found.base_loss == objective(found.net)
    assert all(torch.equal(value, found.net.state_dict()[name]) for name, value in net.state_dict().items())
    assert not found.interrupted
    assert f"\n! {found.reason}\n" in str(found)
    assert "candidate" not in str(found).split("!")[0]


@pytest.mark.parametrize("compressor", [Uniform(), AdaptivePrecision(rounds=9), Codebooks(rounds=1, searches=4)])
def test_interrupting_gives_the_best_so_far(compressor: Compressor) -> None:
    net, objective, _, training = task_of("mlp")

    def stop(progress: Progress) -> None:
        assert progress.done == progress.step.number + 1
        if progress.step.number == 1:
            raise KeyboardInterrupt

    found = compress(
        net,
        objective.batches,
        objective.loss,
        max_loss_increase=1.0,
        compressor=compressor,
        training=training,
        watch=stop,
    )
    assert found.interrupted
    assert len(found.steps) == 2
    assert found.chosen is not None
    assert found.bytes == min(step.bytes for step in found.steps)


def test_refuses_what_makes_no_sense() -> None:
    net, objective, _, _ = task_of("mlp")
    with pytest.raises(ValueError, match="max_loss_increase=-1"):
        compress(net, objective.batches, objective.loss, max_loss_increase=-1, compressor=Uniform())
    for given, word in ((iter(objective.batches), "only once"), ([], "batches is empty")):
        with pytest.raises(ValueError, match=word):
            compress(net, given, max_loss_increase=0)
    with pytest.raises(ValueError, match="validate is empty"):
        compress(net, objective.batches, max_loss_increase=0, validate=[])
    with pytest.raises(ValueError, match="returned a float; return the tensor itself"):
        compress(net, objective.batches, lambda one, batch: 0.5, max_loss_increase=0)  # type: ignore[arg-type,return-value]
    broken = Objective(lambda one, batch: torch.tensor(float("nan")), [0])
    with pytest.raises(ValueError, match="loss of the given network is nan"):
        compress(net, broken.batches, broken.loss, max_loss_increase=0, compressor=Uniform())
    training = problem(*mlp_data())[2]
    with pytest.raises(ValueError, match="example"):
        compress(net, objective.batches, objective.loss, max_loss_increase=0, compressor=Combined(), training=training)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(bits=(1,)), "bits"),
        (lambda: KMeans(values=()), "sizes"),
        (lambda: Codebooks(values=0), "values=0"),
        (lambda: Codebooks(gradient=True), "and a radius"),
        (lambda: DeepCompression(densities=(2.0,)), "shares"),
        (lambda: Hashed(shares=(0.0,)), "shares"),
        (lambda: SoftSharing(components=1), "two components"),
        (lambda: EntropyRounding(rates=()), "out of range"),
        (lambda: EntropyRounding(patience=-1), "out of range"),
        (lambda: Smallest(rates=(-1.0,)), "out of range"),
        (lambda: Smallest(epochs=-1.0), "at least 0"),
        (lambda: GridRounding(steps=(0.0,)), "positive steps"),
        (lambda: AdaptivePrecision(rounds=0), "rounds 0"),
        (lambda: CalibratedRounding(price=-0.1), "out of range"),
        (lambda: Stage(epochs=0), "epochs=0"),
        (lambda: Training(lambda net, batch: torch.zeros(()), lambda epoch: [], 0), "steps=0"),
        (lambda: Training.of(F.cross_entropy, torch.zeros(2, 1), torch.zeros(3)), "as many"),
    ],
)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("patience", "tried"), [(0, 1), (1, 2), (2, 3), (5, 4)])
def test_patience_counts_prices_that_break_the_bound(patience: int, tried: int) -> None:
    net, _, __, training = task_of("mlp")
    growing = itertools.count()
    with pytest.warns(
        ParingWarning, match=rf"none of {tried} candidates kept the bound; the nearest has loss \d+ \(at most 0.5\)"
    ):
        found = compress(
            net,
            [None],
            lambda _net, _batch: torch.tensor(float(next(growing))),
            max_loss_increase=0.5,
            compressor=EntropyRounding((1e-6, 1e-5, 1e-4, 1e-3), epochs=0.2, patience=patience),
            training=training,
        )
    assert len(found.steps) == tried
    assert found.chosen is None


def test_smallest_has_a_grid_when_learning_is_hopeless() -> None:
    net, objective, error, training = task_of("mlp")
    found = compress(net, objective.batches, objective.loss, max_loss_increase=0.05, compressor=Smallest(epochs=1, lr=1e3), training=training,
        error=error.loss, max_error_increase=0.05,
    )  # fmt: skip
    assert found.chosen is not None
    assert "step" in found.chosen.settings
    assert found.bytes < found.base_bytes / 2
