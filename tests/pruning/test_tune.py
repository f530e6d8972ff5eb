"""Training on: schedule, teacher, checkpoints, and what cannot be trained on."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paring.pruning import Teacher, Tune, tune
from paring.pruning.prune import cross_entropy
from paring.pruning.teacher import class_axis
from paring.pruning.tune import count
from paring.train.checkpoint import CheckpointError
from paring.train.guard import Diverged
from pruning.networks import Residual, Shuffled, batches, mlp, seeded


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_rate_rises_and_falls_to_zero() -> None:
    how = Tune(1, warmup=0.1)
    rates = [how.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == max(rates) == 1
    assert 0 < rates[99] < 1e-3


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    found, how = Shuffled(batches((2, 6, 6))), Tune(4)

    def trained(file: Path | None, stop: int | None) -> nn.Module:
        net = seeded(Residual)
        teacher = Teacher().of(copy.deepcopy(net), logits=True)

        def watch(epoch: int) -> None:
            if epoch == stop:
                raise KeyboardInterrupt

        try:
            tune(net, found, cross_entropy, how, teacher=teacher, file=file, after_epoch=watch)
        except KeyboardInterrupt:
            torch.rand(7)
            return trained(file, None)
        return net

    straight = trained(None, None)
    assert same(straight, trained(tmp_path / "a.pt", 2))
    with pytest.raises(CheckpointError, match="another training"):
        tune(mlp(), found, cross_entropy, how, file=tmp_path / "a.pt")


@pytest.mark.parametrize("logits", [True, False])
def test_the_teachers_term_is_its_formula(logits: bool) -> None:
    net, original = seeded(mlp).double(), seeded(mlp, 1).double()
    x, y = batches((5,))[0]
    x = x.double()
    teaching = Teacher(weight=0.6, temperature=3.0).of(original, logits)
    with teaching.listening(net):
        task = cross_entropy(net, (x, y))
        mixed = teaching.mix(task, 0.5)
    said, taught = net(x), original(x)
    if logits:
        p = (taught / 3).softmax(1)
        term = 9 * (p * (p.log() - (said / 3).log_softmax(1))).sum(1).mean()
    else:
        term = (said - taught).square().mean() / taught.var()
        pulls = (
            (said.softmax(1) - nn.functional.one_hot(y, 3)) / len(x),
            2 * (said - taught) / said.numel() / taught.var(),
        )
        assert pulls[0].norm() < pulls[1].norm()
        term = term * pulls[0].norm() / pulls[1].norm()
    torch.testing.assert_close(mixed, 0.7 * task + 0.3 * term, check_dtype=False, atol=1e-6, rtol=1e-5)


def test_the_teacher_compares_what_both_answer() -> None:
    taught, extra = torch.randn(4, 3), torch.randn(4, 3)

    def term(answer: Any) -> torch.Tensor:
        teaching, student = Teacher(weight=1.0).of(_Says(taught), logits=False), _Says(answer)
        with teaching.listening(student):
            student(extra)
            return teaching.mix(torch.zeros(()), 0.0)

    assert torch.equal(term((extra, 9 * extra)), term(extra))
    with pytest.raises(ValueError, match=r"other shapes .*\(4, 2\).*\(4, 3\).*give teacher=None"):
        term((extra[:, :2], extra))


def test_the_teacher_pulls_no_harder_than_the_task_at_answers_of_a_small_spread() -> None:
    teaching = Teacher(weight=0.5, fades=False).of(_Says(1e-3 * torch.randn(8, 6)), logits=False)
    said = torch.randn(8, 6, requires_grad=True)
    student = _Says(said)
    with teaching.listening(student):
        answer = student(said)
        task = (answer - 1e-3 * torch.randn(8, 6)).square().mean()
        (alone,) = torch.autograd.grad(task, said, retain_graph=True)
        (mixed,) = torch.autograd.grad(teaching.mix(task, 0.0), said)
        assert mixed.norm() <= alone.norm() * 1.001
        student(said)
        (taught,) = torch.autograd.grad(teaching.mix(0 * said.sum(), 0.0), said)  # nothing else pulls
        assert taught.norm() > 1000 * alone.norm()


@pytest.mark.parametrize(
    ("answer", "labels", "axis"),
    [
        ((4, 3), (4,), 1),
        ((4, 7, 3), (4, 7), -1),  # texts: classes last
        ((4, 3, 6, 5), (4, 6, 5), 1),  # images of labels
        ((4, 3, 2, 2), (4, 6, 5), 1),  # at another resolution
        ((4, 3, 6), (4, 6), 1),
    ],
)
def test_the_teacher_compares_classes(answer: tuple[int, ...], labels: tuple[int, ...], axis: int) -> None:
    """Against the Kullback-Leibler divergence at every position, one after the other."""
    torch.manual_seed(0)
    said, taught, y = torch.randn(answer), torch.randn(answer), torch.zeros(labels, dtype=torch.int64)
    for batch in ((said, y), [said, y], {"x": said, "labels": y}):
        found = class_axis({"logits": said} if isinstance(batch, dict) else said, batch)
        assert found % said.dim() == axis % said.dim()
    teaching = Teacher(weight=1.0).of(_Says(taught), logits=True, axis=axis)
    student = _Says(said)
    with teaching.listening(student):
        student(said)
        term = teaching.mix(torch.zeros(()), 0.0)
    rows = zip(said.movedim(axis, -1).reshape(-1, 3), taught.movedim(axis, -1).reshape(-1, 3), strict=True)
    naive = [((b / 2).softmax(0) * ((b / 2).softmax(0).log() - (a / 2).softmax(0).log())).sum() * 4 for a, b in rows]
    torch.testing.assert_close(term, torch.stack(naive).mean())


def test_the_teacher_fades() -> None:
    done = torch.linspace(0, 1, 101, dtype=torch.float64)
    shares = torch.tensor([Teacher(weight=0.8).share(float(one)) for one in done], dtype=torch.float64)
    torch.testing.assert_close(shares, 0.4 * (1 + (torch.pi * done).cos()))
    assert shares[-1] == 0
    assert {Teacher(weight=0.8, fades=False).share(float(one)) for one in done} == {0.8}


def test_training_fades_the_teacher_from_its_first_step_to_its_last() -> None:
    net, seen = seeded(mlp), list[float]()

    class Watched:
        def listening(self, net: nn.Module) -> AbstractContextManager[None]:
            return nullcontext()

        def mix(self, loss: torch.Tensor, done: float) -> torch.Tensor:
            seen.append(done)
            return loss

    tune(net, batches((5,)), cross_entropy, Tune(2), teacher=Watched())
    assert seen == [step / len(seen) for step in range(len(seen))]
    assert len(seen) == 2 * len(batches((5,)))


class _Says(nn.Module):
    """Answers always the same."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.answer


@pytest.mark.parametrize(
    ("said", "taught", "distance"), [([[1.0], [2.0]], [[2.0], [5.0]], ((1 + 9) / 2) / 4.5), ([[1.0]], [[3.0]], 4.0)]
)
def test_a_single_number_is_taught_by_its_distance(said: Any, taught: Any, distance: float) -> None:
    said, taught = torch.tensor(said), torch.tensor(taught)
    teaching = Teacher(weight=1.0).of(_Says(taught), logits=True)
    student = _Says(said)
    with teaching.listening(student):
        student(said)
        assert float(teaching.mix(torch.zeros(()), 0.0)) == pytest.approx(distance)


def test_modules_in_eval_mode_stay_so() -> None:
    net = seeded(Residual)
    before = net.bn.running_mean.clone()
    tune(net, batches((2, 6, 6)), cross_entropy, Tune(1), still={"bn"})
    assert torch.equal(net.bn.running_mean, before)
    assert not torch.equal(net.bn_a.running_mean, torch.zeros(6))


def test_nothing_is_trained_for_no_epochs() -> None:
    net = seeded(mlp)
    assert tune(net, [], cross_entropy, Tune(0)).steps == 0


class _RunsOut:
    """A list the first time, half of it after that."""

    def __init__(self) -> None:
        self.left = 4

    def __iter__(self) -> Any:
        found = batches((5,), count=self.left)
        self.left = 2
        return iter(found)


@pytest.mark.parametrize(
    ("given", "loss", "error", "said"),
    [
        (_RunsOut(), cross_entropy, ValueError, "ran out after 2 of 4"),
        ([], cross_entropy, ValueError, "empty"),
        (batches((5,)), lambda net, batch: net(batch[0]), ValueError, "scalar"),
        (batches((5,)), lambda net, batch: net(batch[0]).sum() * float("inf"), Diverged, "learning rate"),
        (batches((5,)), lambda net, batch: 3.0, ValueError, "returned a float"),
    ],
)
def test_what_cannot_be_trained_on(given: Any, loss: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        tune(seeded(mlp), given, loss, Tune(2))


def test_nothing_trains_in_a_frozen_network() -> None:
    net = seeded(mlp).requires_grad_(False)
    with pytest.raises(ValueError, match="epochs=0"):
        tune(net, batches((5,)), cross_entropy, Tune(1))


def test_batches_are_counted_where_they_do_not_say() -> None:
    assert count(Shuffled(batches((5,), count=3))) == 3
    assert count(_RunsOut()) == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": -1},
        {"epochs": 1, "warmup": 1.0},
        {"epochs": 1, "clip": -1.0},
        {"epochs": 1, "clip": "1"},
        {"epochs": 1, "optimizer": "sgd"},
    ],
)
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Tune"):
        Tune(**wrong)
