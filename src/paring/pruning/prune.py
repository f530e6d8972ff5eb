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
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.core import At, Example, Inputs, Places, Watch, plain_net, release, short_repr
from paring.core import validate as check
from paring.cost import latency, ratio
from paring.methods import Budget
from paring.pruning.calls import Calls, example_of
from paring.pruning.folder import Folder
from paring.pruning.gated import GatedCopy
from paring.pruning.importance import Fisher, Importance
from paring.pruning.knapsack import Choice, choose
from paring.pruning.latency_table import LatencyTable
from paring.pruning.norms import renew_statistics
from paring.pruning.pruned import CLOSE, Look, Pruned, SiteRow
from paring.pruning.repair import Repair
from paring.pruning.teacher import Teacher
from paring.pruning.tune import Loss, Tune, count, scalar, tune
from paring.removal import Report, compact

Metric = Callable[[nn.Module], float]
STEP = 0.84  # what one round leaves of the network, at least, where nobody says how many there are
_TRIES = 4  # choices until a latency is met
_ROUNDS = 15  # paired measurements of a latency


@dataclass(frozen=True)
class Search:
    """How the units that go are found.

    Args:
        importance: how units are judged.
        rounds: the cut is made in so many steps, judged anew before each; None takes as many as leave at least `STEP` of the
            network each: 4 for a half, 8 for a quarter. The widths stand before training either way.
        batches: how many batches are looked at.
        repair: let what stays take over the work of what goes, by least squares.
        damping: share of the mean variance that least squares adds to each variance.
        least: share of the units of each group that stays in any case; one always does.

    Raises:
        ValueError: a number is out of its range.
    """

    importance: Importance = Fisher()  # noqa: RUF009  # a frozen value
    rounds: int | None = None
    batches: int = 8
    repair: bool = True
    damping: float = 1e-3
    least: float = 0.0

    def __post_init__(self) -> None:
        check.whole_number(self, "batches", *(("rounds",) if self.rounds is not None else ()))
        check.positive(self, "damping")
        check.within(self, "[0, 1)", "least", what="a share of a group's units,")

    def rounds_for(self, asked: Mapping[str, float]) -> int:
        """How many rounds for these shares of the dense network."""
        return self.rounds or max(math.ceil(math.log(min(asked.values())) / math.log(STEP) - 1e-9), 1)


def cross_entropy(net: nn.Module, batch: Any) -> Tensor:
    """The loss where none is given: the network's own for a mapping, cross-entropy for a pair of input and labels.

    Raises:
        ValueError: the batch is neither, or the network answers no loss.
    """
    if isinstance(batch, dict) or hasattr(batch, "keys"):
        answer = net(**batch)
        found = answer.get("loss") if hasattr(answer, "get") else getattr(answer, "loss", None)
        if not isinstance(found, Tensor):
            raise ValueError(
                f"this {type(net).__name__} answers no loss for a batch with {', '.join(map(str, batch))}: put labels into the "
                "batch, or give loss=, a function of the network and a batch"
            )
        return found
    pair = batch if isinstance(batch, tuple | list) else ()
    if len(pair) != 2 or not isinstance(pair[1], Tensor) or pair[1].is_floating_point():
        raise ValueError(
            f"a batch here is a {type(batch).__name__}; without loss= it has to be a pair of an input and integer labels, or a "
            "mapping that the network takes. Give loss=, a function of the network and a batch"
        )
    out = net(pair[0])
    if out.dim() == pair[1].dim() + 1 and out.dim() > 2 and out.shape[:-1] == pair[1].shape:
        return F.cross_entropy(out.flatten(0, -2).float(), pair[1].flatten())  # classes last, as language models answer
    return F.cross_entropy(out.float(), pair[1])


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
    search: Search = Search(),  # a frozen value
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
    net, budgets = plain_net(net, "prune"), [to] if isinstance(to, Budget) else list(to)
    how = _length(epochs, training)
    _check(net, batches, validate, budgets, how)
    asked = (short_repr(tuple(budgets)), short_repr(search), short_repr(how), short_repr(teacher), str(at))
    kept = None if folder is None else Folder(Path(folder), net, asked)
    seen = list(islice(batches, search.batches))
    judge = _Judge(loss or cross_entropy, seen if validate is None else validate, metric)
    whole = called_with(net, seen, judge.loss)
    given = Inputs.of(example) if example is not None else example_of(whole)
    still = {name for name, module in net.named_modules() if net.training and not module.training}
    dense, gated = judge.look(net), GatedCopy.of(net, given, at)
    if any(budget.latency is not None for budget in budgets):
        gated = replace(gated, times=LatencyTable(gated, whole))
    teaching = None if teacher is None or not how.epochs else teacher.of(copy.deepcopy(net), logits=loss is None)
    repair = Repair(gated, seen, judge.loss, search.damping if search.repair else None)
    made = []
    for number, budget in enumerate(budgets):
        began, before = time.perf_counter(), 0.0
        if kept is not None and (found := kept.choice(number, gated)) is not None:
            choice, before = found
            small, report = _removed(gated, given)
        else:
            choice, small, report = _cut(net, gated, repair, budget, search, seen, judge.loss, given, whole)
            if kept is not None:
                kept.keep(number, choice, gated, time.perf_counter() - began)
        renew_statistics(small, seen, judge.loss)
        searched, cut = before + time.perf_counter() - began, judge.look(small)
        file = None if kept is None else kept.training(number)
        tuned = tune(small, batches, judge.loss, how, teacher=teaching, file=file, watch=watch, still=still)
        small.eval()
        rows = [
            SiteRow(site.layers, len(part), int(part.sum()))
            for site, part in zip(gated.sites, choice.mask.split(gated.sizes), strict=True)
        ]
        looks = (dense, cut, judge.look(small) if tuned.steps else cut)
        pruned = Pruned(budget, choice.shares, tuple(rows), report, looks, searched, tuned, choice.path, gated.uncut)
        pruned.warn()
        made.append((small, pruned))
    return made[0] if isinstance(to, Budget) else made


def _length(epochs: int | None, training: Tune | None) -> Tune:
    if training is None:
        return Tune(2 if epochs is None else epochs)
    if epochs is not None and epochs != training.epochs:
        raise ValueError(f"prune(epochs={epochs}, training={training}) names two lengths of training: leave epochs out")
    return training


def _check(
    net: nn.Module, batches: Iterable[Any], validate: Iterable[Any] | None, budgets: Sequence[Budget], how: Tune
) -> None:
    """Refuse what would fail only after the search."""
    if not budgets:
        raise ValueError("prune(to=[]) asks for nothing: give a Budget, or several")
    for name, given in (("batches", batches), ("validate", validate)):
        if isinstance(given, Iterator):
            raise ValueError(
                f"{name} is a {type(given).__name__}, which can be gone through only once: give a list, a DataLoader, or an "
                "object whose __iter__ begins anew"
            )
        if given is not None:
            count(given, name)
    if how.epochs:
        how.make(net)


@dataclass(frozen=True)
class _Judge:
    """Loss and metric of a network, for the outcome."""

    loss: Loss
    batches: Iterable[Any]
    metric: Metric | None

    @torch.no_grad()
    def look(self, net: nn.Module) -> Look:
        modes = [(module, module.training) for module in net.modules()]
        net.eval()
        try:
            losses = [float(scalar(self.loss(net, batch))) for batch in self.batches]
            return Look(sum(losses) / len(losses), None if self.metric is None else float(self.metric(net)))
        finally:
            for module, mode in modes:
                module.training = mode


def called_with(net: nn.Module, seen: list[Any], loss: Loss) -> Inputs:
    """What the loss calls the network with, for the first batch.

    Raises:
        ValueError: it does not call it.
    """
    modes, calls = [(module, module.training) for module in net.modules()], Calls()
    net.eval()
    try:
        with torch.no_grad(), calls.of(net):
            loss(net, seen[0])
            if calls.inputs is None:
                raise ValueError(
                    "loss(net, batch) did not call the network it was given, so nothing is known of its inputs: call net(...) in "
                    "it, not a network from outside"
                )
            return calls.inputs.map(Tensor.detach)
    finally:
        for module, mode in modes:
            module.training = mode


def _cut(
    net: nn.Module,
    gated: GatedCopy,
    repair: Repair,
    budget: Budget,
    search: Search,
    seen: list[Any],
    loss: Loss,
    given: Inputs,
    whole: Inputs,
) -> tuple[Choice, nn.Module, Report]:
    """The choice and the small network; a latency is measured, and asked for anew as often as it is missed, up to a limit."""
    asked = dict(budget.targets)
    choice = find(gated, repair, asked, budget.multiple_of, search, seen, loss)
    small, report = _removed(gated, given)
    for left in reversed(range(_TRIES if budget.latency is not None else 0)):
        assert budget.latency is not None
        times = latency({"dense": net, "small": small}, whole, threads=torch.get_num_threads(), repeats=_ROUNDS)
        got = ratio(times["small"], times["dense"])
        choice = replace(choice, shares={**choice.shares, "latency": got}, predicted=choice.shares["latency"])
        if abs(got / budget.latency - 1) <= CLOSE or not left:
            break
        asked["latency"] = min(max(asked["latency"] * budget.latency / got, 0.5 * asked["latency"]), 1.0)
        try:
            choice = find(gated, repair, asked, budget.multiple_of, search, seen, loss)
        except ValueError:  # so little cannot be reached: what there is stays, and `Pruned.notes` says what was missed
            repair.apply(choice.mask)
            renew_statistics(gated.net, seen, loss)
            break
        small, report = _removed(gated, given)
    return choice, small, report


def find(
    gated: GatedCopy,
    repair: Repair,
    asked: Mapping[str, float],
    multiple_of: int,
    search: Search,
    seen: list[Any],
    loss: Loss,
) -> Choice:
    """What goes, in rounds; the gated network is repaired and closed accordingly.

    Args:
        gated: the network.
        repair: its repair.
        asked: shares of the dense network by name of the cost.
        multiple_of: units go in blocks of so many.
        search: how to look.
        seen: batches to judge on.
        loss: of a network on a batch.
    """
    mask, scores = torch.ones(gated.units, dtype=torch.bool), None
    repair.apply(mask)
    path: list[tuple[float, float]] = []
    rounds = search.rounds_for(asked)
    for part in ((number + 1) / rounds for number in range(rounds)):
        judged = search.importance.look(gated, seen, loss)
        scores = judged if scores is None else torch.where(mask, judged, scores)  # what is closed keeps its last one
        targets = {name: share**part for name, share in asked.items()}
        choice = choose(gated, scores, targets, multiple_of=multiple_of, least=search.least, begin=mask)
        mask = choice.mask
        repair.apply(mask)
        renew_statistics(gated.net, seen, loss)
        risen = path[-1][1] if path else 0.0  # a round begins where the last one ended
        path += [(share, risen + rise) for share, rise in choice.path[bool(path) :]]
    return Choice(mask, choice.shares, tuple(path))


def _removed(gated: GatedCopy, given: Inputs) -> tuple[nn.Module, Report]:
    cut = copy.deepcopy(gated.net)
    release(cut)
    return compact(cut, given, inplace=False)
