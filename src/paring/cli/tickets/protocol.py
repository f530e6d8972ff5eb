"""The lottery-ticket protocol: dense baseline, search, training in isolation, verdict.

1. Train the dense network, once per seed.
2. Search for masks with a method; the weights at the rewind point are kept on the way.
3. Train every mask in isolation, from the weights and the step of the rewind point (and, if asked, the controls).
4. Judge: see `paring.cli.tickets.verdict`.

A method of several prunings (IMP) gives a ticket per round; of the others every given variant (densities, say) is a search
of its own, and its final mask is the ticket. What prunes at initialisation knows its mask before it trains, so its own
training is the training in isolation; so is a round that begins with its mask at the rewind point (every one of IMP that
rewinds weights, the last of Continuous Sparsification). Everything is a run of its own in a folder named by its hash, so
an interrupted protocol goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paring.cli.experiment import Experiment
from paring.cli.tickets.retrain import Control, Retrain
from paring.cli.tickets.verdict import Verdict, judge
from paring.core import Clock, Method, Places, Stack
from paring.data import Dataset
from paring.methods import L0, Dense
from paring.train import Diverged, Recipe


@dataclass(frozen=True)
class Plan:
    """What to search with, on what.

    Args:
        model, data: the network and the data set.
        methods: one method of several prunings, or variants of one method (densities), a search each.
        recipe: of every training; its seed is replaced by each of `seeds`.
        seeds: how many.
        controls: "reinit", "shuffled", or both.
        validation: training examples set aside.

    Raises:
        ValueError: no method, the same one twice, one that masks no weights or trains its own ticket, or a control that does
            not exist.
    """

    model: str
    data: str
    methods: tuple[Method, ...]
    recipe: Recipe
    seeds: int = 3
    controls: tuple[Control, ...] = ()
    validation: int = 0

    def __post_init__(self) -> None:
        if not self.methods or self.seeds < 1:
            raise ValueError("a search for tickets needs a method and at least one seed")
        object.__setattr__(self, "controls", tuple(dict.fromkeys(self.controls)))
        if len(set(map(repr, self.methods))) < len(self.methods):
            raise ValueError("two searches are the same; name each setting once")
        parts = [part for one in self.methods for part in (one.methods if isinstance(one, Stack) else (one,))]
        if any(isinstance(part, L0) and part.end.rewind is not None for part in parts):
            raise ValueError(
                "Hold(rewind=...) trains its own ticket in the rest of its training: leave rewind out, and what its gates find "
                "is trained in isolation from the initialisation"
            )
        wrong = set(self.controls) - {"reinit", "shuffled"}
        if wrong:
            raise ValueError(f"controls are 'reinit' and 'shuffled', not {', '.join(map(repr, sorted(wrong)))}")
        without = next((method for method in self.methods if not _masks_weights(method)), None)
        if without is not None:
            raise ValueError(
                f"{without!r} has no gates on weights, so it finds no ticket to train in isolation; IMP, "
                "ContinuousSparsification, GMP, AtInit and L0(at='weights') do"
            )

    def experiment(self, method: Method, seed: int) -> Experiment:
        """One training of the plan that is no training in isolation."""
        return Experiment(self.model, self.data, method, replace(self.recipe, seed=seed), validation=self.validation)


def run_plan(plan: Plan, root: Path, *, progress: bool = True) -> tuple[list[dict[str, Any]], Verdict]:
    """Run what is missing and judge.

    Args:
        plan: what to do.
        root: folder of all runs.
        progress: show progress on stderr.

    Returns:
        All rows ("control": "dense", "ticket", ..., "diverged" for searches and trainings that did), and the verdict.

    Raises:
        Diverged: a dense network's training diverged, or that of every subnetwork.
        ValueError: a method cannot train this network for so long; nothing was trained then.
    """
    dense: list[dict[str, Any]] = []
    tickets: list[dict[str, Any]] = []
    lost: list[dict[str, Any]] = []
    first = plan.experiment(Dense(), 0).dataset()
    for method in plan.methods:
        plan.experiment(method, 0).attached(first)
    for seed in range(plan.seeds):
        baseline = plan.experiment(Dense(), seed)
        data = baseline.dataset()
        try:
            row = baseline.run(root, progress=progress, data=data)
        except Diverged as error:
            raise Diverged(f"the dense network, seed {seed}: {error}") from error
        dense.append(row | {"control": "dense", "level": "dense"})
        _tell(progress, f"dense, seed {seed}: error {row['error']:.2f} %")
        for number, method in enumerate(plan.methods):
            search = plan.experiment(method, seed)
            with _unless_diverged(lost, search, f"{number}", progress):
                found = search.run(root, progress=progress, data=data)
                for round in method.tickets:
                    for control in ("ticket", *plan.controls):
                        level = f"{number}/{round}"
                        with _unless_diverged(lost, search, f"{level}/{control}", progress):
                            row = _trained(search, found, round, control, root, data, progress)
                            tickets.append(row | {"level": level, "search": number} | _cost(method, found, round))
    if not any(row["control"] == "ticket" for row in tickets):
        raise Diverged(f"no subnetwork is left to judge; the first that diverged: {lost[0]['note']}")
    winning = not any(row["rewind_step"] for row in tickets if row["control"] == "ticket")
    return [*dense, *tickets, *lost], judge(dense, tickets, winning=winning)


def _trained(
    search: Experiment,
    found: dict[str, Any],
    round: int,
    control: Control,
    root: Path,
    data: Dataset,
    progress: bool,
) -> dict[str, Any]:
    """The row of one training in isolation, done now or by the search itself."""
    own = _own(search, found, round, data) if control == "ticket" else None
    one = Retrain(search, round, control, at=getattr(search.method, "at", "weights"))
    row = own or one.run(root, progress=progress, data=data)
    _tell(
        progress,
        f"{search.label} {control}, density {100 * row['weight_density']:.3g} %, seed {search.recipe.seed}: "
        f"error {row['error']:.2f} %",
    )
    return row | {"own": own is not None}


@contextmanager
def _unless_diverged(lost: list[dict[str, Any]], search: Experiment, what: str, progress: bool) -> Iterator[None]:
    """A training that diverges is noted in `lost` and told, and the others go on."""
    try:
        yield
    except Diverged as error:
        seed = search.recipe.seed
        note = f"{search.label}, {what}, seed {seed}: {error}"
        _tell(progress, f"diverged: {note}")
        common = {"model": search.model, "data": search.data, "method": search.label, "source": "measured"}
        lost.append({**common, "control": "diverged", "level": what, "seed": seed, "note": note})


def _masks_weights(method: Method) -> bool:
    """Whether the method, or one of a stack, has all of its gates on weights."""
    parts = method.methods if isinstance(method, Stack) else (method,)
    given = [Places.of(part.at) for part in parts if hasattr(part, "at")]
    return any(set(places.kinds) == {"weights"} for places in given)


def _own(search: Experiment, found: dict[str, Any], round: int, data: Dataset) -> dict[str, Any] | None:
    """The row of a ticket that the search trained itself, from the rewind point and under its mask; None for others."""
    method = search.method
    if method.trains_ticket:
        return found | {"control": "ticket", "round": round, "rewind_step": 0}
    if round == 0:
        return None
    epoch_steps = search.epoch_steps(data)
    clock = Clock(0, round, search.recipe.epochs * epoch_steps, epoch_steps)
    back = method.begin(clock)
    if not back.weights or back.step != method.point(clock):
        return None
    before, this = found["rounds"][round - 1 : round + 1]
    row: dict[str, Any] = {key: found[key] for key in ("model", "data", "method", "seed", "source")} | this
    spent = {key: this[key] - before[key] for key in ("epochs", "train_seconds")}
    return row | spent | {"control": "ticket", "rewind_step": back.step}


def _cost(method: Method, found: dict[str, Any], round: int) -> dict[str, Any]:
    """Epochs and seconds of the search until the mask of this round was known."""
    if method.trains_ticket:
        return {"search_epochs": 0, "search_seconds": 0.0}
    if not found["rounds"]:
        return {"search_epochs": found["epochs"], "search_seconds": found["train_seconds"]}
    before = found["rounds"][method.decided(round)]
    return {"search_epochs": before["epochs"], "search_seconds": before["train_seconds"]}


def _tell(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr, flush=True)
