"""The lottery-ticket protocol: dense baseline, search, training in isolation, verdict.

1. Train the dense network, once per seed.
2. Search for masks with a method; the weights at the rewind point are kept on the way.
3. Train every mask in isolation, from the weights and the step of the rewind point (and, if asked, the controls).
4. Judge: see `paring.lab.tickets.verdict`.

A method of several prunings (IMP) gives a ticket per round; of the others every given variant (densities, say) is a search
of its own, and its final mask is the ticket. What prunes at initialisation knows its mask before it trains, so its own
training is the training in isolation. Everything is a run of its own in a folder named by its hash, so an interrupted protocol goes on where it was.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paring.core import Clock, Method
from paring.lab.experiment import Experiment
from paring.lab.tickets.retrain import Control, Retrain
from paring.lab.tickets.verdict import Verdict, judge
from paring.methods import Dense
from paring.train import Recipe


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
        ValueError: no method, or a control that does not exist.
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
        wrong = set(self.controls) - {"reinit", "shuffled"}
        if wrong:
            raise ValueError(f"controls are 'reinit' and 'shuffled', not {', '.join(map(repr, sorted(wrong)))}")

    def experiment(self, method: Method, seed: int) -> Experiment:
        """One training of the plan that is no training in isolation."""
        return Experiment(self.model, self.data, method, replace(self.recipe, seed=seed), validation=self.validation)

    @property
    def winning(self) -> bool:
        """Whether weights go back to the initialisation."""
        return all(not method.point(Clock(steps=1, epoch_steps=1)) for method in self.methods)


def run_plan(plan: Plan, root: Path, *, progress: bool = True) -> tuple[list[dict[str, Any]], Verdict]:
    """Run what is missing and judge.

    Args:
        plan: what to do.
        root: folder of all runs.
        progress: show progress on stderr.

    Returns:
        All rows ("control": "dense", "ticket", ...), and the verdict.
    """
    dense, tickets = [], []
    for seed in range(plan.seeds):
        row = plan.experiment(Dense(), seed).run(root, progress=progress)
        dense.append(row | {"control": "dense", "level": "dense"})
        _tell(progress, f"dense, seed {seed}: error {row['error']:.2f} %")
        for number, method in enumerate(plan.methods):
            search = plan.experiment(method, seed)
            found = search.run(root, progress=progress)
            for round in method.tickets:
                for control in ("ticket", *plan.controls):
                    one = Retrain(search, round, control, at=getattr(method, "at", "weights"))
                    same = method.trains_ticket and control == "ticket"
                    trained = found | {"control": control} if same else one.run(root, progress=progress)
                    tickets.append(trained | {"level": f"{number}/{round}"} | _cost(method, found, round))
                    _tell(
                        progress,
                        f"{search.label} {control}, density {100 * trained['weight_density']:.3g} %, seed {seed}: "
                        f"error {trained['error']:.2f} %",
                    )
    parallel = len(plan.methods) > 1
    return [*dense, *tickets], judge(dense, tickets, winning=plan.winning, parallel=parallel)


def _cost(method: Method, found: dict[str, Any], round: int) -> dict[str, Any]:
    """Epochs and seconds of the search until the mask of this round was known."""
    if method.trains_ticket:
        return {"search_epochs": 0, "search_seconds": 0.0}
    if not found["rounds"]:
        return {"search_epochs": found["epochs"], "search_seconds": found["train_seconds"]}
    before = found["rounds"][round - 1]
    return {"search_epochs": before["epochs"], "search_seconds": before["train_seconds"]}


def _tell(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr, flush=True)
