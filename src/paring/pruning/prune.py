"""`prune`: a trained network, made as small as asked in one call.

1. Capture, and put a gate on every unit that may go.
2. In some rounds, each with a share of the cut: judge the units by what closing one costs the loss (`importance`), choose
   those that go (`choose`), and let what stays take over their work (`repair`).
3. Remove them exactly (`paring.compact`), and make the BatchNorm statistics anew.
4. Train the small network on, with the original as its teacher.

What is cut stands before the first training step, so that all of it trains the final widths, at their price.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from paring.analysis.capture import check_copies, untouched_random
from paring.core import At, Example, Inputs, Places, Watch, plain_net, short_repr
from paring.core.default_loss import Loss, again_and_again, count, cross_entropy, ran_out, scalar
from paring.core.evaluating import evaluating
from paring.core.torch_masks import multiplied_in
from paring.core.unwrap import without_wrapped_parts
from paring.methods import Budget
from paring.pruning.calls import Calls, example_of, few, refuse_lost_training, runs, train_mode_alone
from paring.pruning.folder import Folder
from paring.pruning.gated import GatedCopy
from paring.pruning.norms import renew_statistics
from paring.pruning.pruned import Look, Pruned, SiteRow
from paring.pruning.repair import Repair
from paring.pruning.search import HELD, Search, Setting, cut, removed, with_costs
from paring.pruning.teacher import Teacher, class_axis
from paring.pruning.tune import Tune, tune

Metric = Callable[[nn.Module], float]


@overload
def prune(
    net: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    to: Budget,
    epochs: int | None = None,
    example: Example | None = None,
    at: At = ...,
    search: Search = ...,
    teacher: Teacher | None = ...,
    training: Tune | None = None,
    validate: Iterable[Any] | None = None,
    metric: Metric | None = None,
    folder: str | Path | None = None,
    watch: Watch | None = None,
) -> tuple[nn.Module, Pruned]: ...


@overload
def prune(
    net: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    to: Sequence[Budget],
    epochs: int | None = None,
    example: Example | None = None,
    at: At = ...,
    search: Search = ...,
    teacher: Teacher | None = ...,
    training: Tune | None = None,
    validate: Iterable[Any] | None = None,
    metric: Metric | None = None,
    folder: str | Path | None = None,
    watch: Watch | None = None,
) -> list[tuple[nn.Module, Pruned]]: ...


def prune(
    net: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    to: Budget | Sequence[Budget],
    epochs: int | None = None,
    example: Example | None = None,
    at: At = Places(("units",)),  # noqa: B008  # a frozen value
    search: Search = Search(),  # noqa: B008  # a frozen value
    teacher: Teacher | None = Teacher(),  # noqa: B008  # a frozen value
    training: Tune | None = None,
    validate: Iterable[Any] | None = None,
    metric: Metric | None = None,
    folder: str | Path | None = None,
    watch: Watch | None = None,
) -> tuple[nn.Module, Pruned] | list[tuple[nn.Module, Pruned]]:
    """A trained network, smaller: the units that the loss misses least go, and the small network is trained on.

    Args:
        net: a trained network; it stays as it is.
        batches: training data, gone through several times: a DataLoader, a list, anything whose `iter` begins anew.
        loss: of a network on a batch, a scalar; by default cross-entropy for pairs of an input and integer labels, and
            `net(**batch).loss` for mappings.
        to: what the small network may cost; several budgets give several networks.
        epochs: passes over the batches after the cut (2); 0 only calibrates.
        example: what the network takes, to capture it; by default what the loss calls it with.
        at: which units may go, "units:!NAME" leaves a layer alone; see `paring.core.places`.
        search: how the units that go are found.
        teacher: how much the original network teaches while training; None for not at all.
        training: how to train, in place of `epochs`.
        validate: held-out batches; the outcome has the mean loss on them (on what was calibrated with, else).
        metric: of a network, for the outcome; such as the accuracy on held-out data.
        folder: keeps the choice and a checkpoint of each epoch; the same call goes on from there.
        watch: called with a `paring.core.Progress` now and then.

    Returns:
        The small network, in eval mode, and what was done; for several budgets a list of such pairs.

    Raises:
        ValueError: a budget that cannot be met (with the least that can), nothing to prune, a loss that is no scalar or not
            finite, batches that run out, no parameter that trains.
        paring.CaptureError: the network cannot be captured.
        Diverged: the loss is not finite any more while training.
        CheckpointError: the folder belongs to another call.
    """
    if isinstance(to, int | float):
        raise TypeError(
            f"prune(to={to}): of what? Give a Budget: to=pr.Budget(macs={to}), or params=, latency=, bytes=, memory="
        )
    net, budgets = (
        multiplied_in(without_wrapped_parts(plain_net(net, "prune"))),
        [to] if isinstance(to, Budget) else list(to),
    )
    how = _length(epochs, training)
    check_copies(net)
    optimizer = _checked(net, batches, validate, budgets, how)
    asked = (short_repr(tuple(budgets)), short_repr(search), short_repr(how), short_repr(teacher), str(at))
    kept = None if folder is None else Folder(Path(folder), net, asked, optimizer)
    stream = iter(batches)
    if not (drawn := list(islice(stream, search.batches + HELD))):
        raise ran_out("batches")
    seen, held = drawn[: search.batches], drawn[search.batches :] or drawn
    judge = _Judge(loss or cross_entropy, seen if validate is None else validate, metric)
    whole = called_with(net, seen, judge.loss)
    if kept is not None:
        with untouched_random():
            kept.judge(replace(judge, batches=seen[:1], metric=None).look(net).loss)
    given = Inputs.of(example) if example is not None else example_of(net, whole)
    still = {name for name, module in net.named_modules() if net.training and not module.training}
    dense, gated = judge.look(net), GatedCopy.of(net, given, at)
    gated, setting = with_costs(gated, budgets, whole), Setting(search, seen, held, judge.loss, given, whole)
    teaching = None
    if teacher is not None and how.epochs:
        original = copy.deepcopy(net).eval()
        with torch.no_grad():
            axis = class_axis(whole.call(original), seen[0])
        teaching = teacher.of(original, loss is None, axis)
    repair = Repair(gated, seen, judge.loss, fit=search.repair, damping=search.damping, more=stream)
    del stream  # processes that load data may end
    if how.epochs and runs(net, few(whole), train=True) and train_mode_alone(net, few(whole)):
        _try_training(net, gated, setting)
    made = []
    for number, budget in enumerate(budgets):
        began, before = time.perf_counter(), 0.0
        if kept is not None and (found := kept.choice(number, gated)) is not None:
            choice, before = found
            small, report = removed(gated, setting)
        else:
            choice, small, report = cut(net, gated, repair, budget, setting)
            if kept is not None:
                kept.keep(number, choice, gated, time.perf_counter() - began)
        if how.epochs:
            refuse_lost_training(net, small, few(whole))
        renew_statistics(small, seen, judge.loss)
        searched, after = before + time.perf_counter() - began, judge.look(small)
        file = None if kept is None else kept.training(number)
        tuned = tune(small, batches, judge.loss, how, teacher=teaching, file=file, watch=watch, still=still)
        small.eval()
        rows = [
            SiteRow(site.layers, len(part), int(part.sum()))
            for site, part in zip(gated.sites, choice.mask.split(gated.sizes), strict=True)
        ]
        looks = (dense, after, judge.look(small) if tuned.steps else after)
        pruned = Pruned(
            budget,
            choice.shares,
            tuple(rows),
            report,
            looks,
            searched,
            tuned,
            choice.path,
            gated.uncut,
            choice.predicted,
        )
        pruned.warn()
        made.append((small, pruned))
    return made[0] if isinstance(to, Budget) else made


def _length(epochs: int | None, training: Tune | None) -> Tune:
    if training is None:
        return Tune(2 if epochs is None else epochs)
    if epochs is not None and epochs != training.epochs:
        raise ValueError(f"prune(epochs={epochs}, training={training}) names two lengths of training: leave epochs out")
    return training


def _checked(
    net: nn.Module, batches: Iterable[Any], validate: Iterable[Any] | None, budgets: Sequence[Budget], how: Tune
) -> Optimizer | None:
    """Refuse what would fail only after the search; returns the optimizer that would train the network as it is."""
    if not budgets:
        raise ValueError("prune(to=[]) asks for nothing: give a Budget, or several")
    for one in budgets:
        if not isinstance(one, Budget):
            raise TypeError(
                f"prune(to=) takes a Budget, or several in a list, such as pr.Budget(macs=0.5); {one!r} is none"
            )
    for name, given in (("batches", batches), ("validate", validate)):
        if given is not None:
            again_and_again(name, given)
            count(given, name)
    return how.make(net) if how.epochs else None


@dataclass(frozen=True)
class _Judge:
    """Loss and metric of a network, for the outcome."""

    loss: Loss
    batches: Iterable[Any]
    metric: Metric | None

    @torch.no_grad()
    def look(self, net: nn.Module) -> Look:
        with evaluating(net):
            losses = [float(scalar(self.loss(net, batch))) for batch in self.batches]
            if not losses:
                raise ran_out("validate")
            return Look(sum(losses) / len(losses), None if self.metric is None else measured(self.metric, net))


def measured(metric: Metric, net: nn.Module) -> float:
    """The metric of a network.

    Raises:
        ValueError: it returns no number.
    """
    found: object = metric(net)
    try:
        return float(found)  # type: ignore[arg-type]  # whatever the user's metric returns
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"metric(net) has to return one number, and returned a {type(found).__name__}") from error


def _try_training(net: nn.Module, gated: GatedCopy, setting: Setting) -> None:
    """Before anything is searched: does the network train without a unit of each group?

    Raises:
        ValueError: it does not, since a part that runs in train mode alone reads what was cut.
    """
    starts = torch.tensor([0, *gated.sizes[:-1]]).cumsum(0)
    mask = torch.ones(gated.units, dtype=torch.bool)
    mask[starts[torch.tensor(gated.sizes) > 1]] = False
    gated.set(mask)
    small, _ = removed(gated, setting)
    gated.set(torch.ones_like(mask))
    refuse_lost_training(net, small, few(setting.whole))


def called_with(net: nn.Module, seen: list[Any], loss: Loss) -> Inputs:
    """What the loss calls the network with, for the first batch. It is given a copy, so that one from outside does not pass.

    Raises:
        ValueError: it does not call it.
    """
    net, calls = copy.deepcopy(net).eval(), Calls()
    with torch.no_grad(), calls.of(net):
        try:
            loss(net, seen[0])
        except (TypeError, AttributeError) as error:  # what a loss of an answer and labels ends in
            if calls.inputs is not None:
                raise
            raise ValueError(
                f"loss failed before it called the network ({error}). It is called as loss(net, batch), with the network and "
                "a whole batch; for pairs: loss=lambda net, batch: my_loss(net(batch[0]), batch[1])"
            ) from error
        if calls.inputs is None:
            raise ValueError(
                "loss(net, batch) did not call the network it was given, so nothing is known of its inputs: call net(...) in "
                "it, not a network from outside"
            )
        return calls.inputs.map(Tensor.detach)
