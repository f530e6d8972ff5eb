"""What became of the two algorithms of Friesen and Domingos 2018, at a size where all is known: `python -m evidence table ftprop-toy`.

Tasks: exclusive or and parity of ±1 bits, and random dichotomies of Gaussian points in 4 dimensions. Rows
by "part":

* "search": Algorithm 1 (`ftprop`): found, proved infeasible, or not found within the budget; one row per task and seed.
* "training": Algorithm 2 (`TargetPropagation`) from torch's initial weights, whole batch, Adam at 0.03, at most 200
  batches: how many seeds come to zero training error, per task and variant.
* "targets": sign(-G) at initial weights against the feasible targets that Algorithm 1 reaches from there, and against all
  patterns of the first hidden layer; means over seeds.
* "network": the heuristic in a sign MLP 784-256-256-10 on MNIST, before training and after each of two epochs of
  FTP-SH (Adam at 1e-3, batches of 100), on 1,000 training examples; one row per layer, epoch and seed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evidence.hard.agreement import target_quality
from evidence.hard.brute_force import brute_force
from evidence.hard.feasible_agreement import feasible_agreement, sign_loss
from evidence.tables.computed import Computed
from paring.cli.results import Results, load
from paring.data import load as load_data
from paring.hard import Hinge, LogLoss, SaturatingHinge, Sign, SoftHinge
from paring.hard.outcome import Found, Outcome
from paring.hard.target_propagation import TargetPropagation
from paring.hard.target_search import ftprop

_BATCHES, _LR, _BUDGET = 200, 0.03, 800
_EPOCHS, _SHOWN, _PAIRS = 2, 1000, 4000


@dataclass(frozen=True)
class Task:
    """Points and targets for a seed, and the widths of the hidden layers."""

    name: str
    hidden: tuple[int, ...]
    make: Callable[[int], tuple[Tensor, Tensor]]

    @property
    def label(self) -> str:
        return f"{self.name}, hidden {'-'.join(map(str, self.hidden))}"


def _parity(bits: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    points = torch.tensor(list(product([-1.0, 1.0], repeat=bits)))
    return lambda seed: (points, points.prod(1))


def _random(count: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    def make(seed: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(seed)
        points, labels = rng.standard_normal((count, 4)), rng.choice([-1.0, 1.0], count)
        return torch.tensor(points, dtype=torch.float32), torch.tensor(labels, dtype=torch.float32)

    return make


TASKS = (
    Task("exclusive or", (1,), _parity(2)),
    Task("exclusive or", (2,), _parity(2)),
    Task("exclusive or", (2, 2), _parity(2)),
    Task("parity of 3", (2,), _parity(3)),
    Task("parity of 3", (3,), _parity(3)),
    Task("parity of 3", (6,), _parity(3)),
    Task("parity of 4", (4,), _parity(4)),
    Task("random, 10 points", (3,), _random(10)),
    Task("random, 20 points", (3,), _random(20)),
    Task("random, 20 points", (6,), _random(20)),
)
FEASIBLE = tuple(task for task in TASKS if task.label not in ("exclusive or, hidden 1", "parity of 3, hidden 2"))
VARIANTS: dict[str, dict[str, Any]] = {
    "soft hinge": {"loss": SoftHinge()},
    "saturating hinge": {"loss": SaturatingHinge()},
    "hinge": {"loss": Hinge()},
    "log-loss": {"loss": LogLoss()},
    "soft hinge, unweighted": {"loss": SoftHinge(weighted=False)},
    "hinge, unweighted": {"loss": Hinge(weighted=False)},
    "soft hinge, 3 inner steps": {"loss": SoftHinge(), "inner_steps": 3},
    "soft hinge, downwards": {"loss": SoftHinge(), "order": "downwards"},
}


def _network(task: Task, seed: int, inputs: int) -> nn.Sequential:
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for above, below in pairwise((inputs, *task.hidden)):
        modules += [nn.Linear(above, below), Sign()]
    return nn.Sequential(*modules, nn.Linear(task.hidden[-1], 1))


def _kind(outcome: Outcome) -> str:
    return f"found by {outcome.by}" if isinstance(outcome, Found) else type(outcome).__name__.lower()


def _searched(task: Task, seed: int) -> dict[str, Any]:
    x, y = task.make(seed)
    started = time.perf_counter()
    outcome = ftprop(x.double().numpy(), y.numpy(), task.hidden, budget=_BUDGET, seed=seed)
    spent = time.perf_counter() - started
    if isinstance(outcome, Found):
        outcome.check(x.double().numpy(), y.numpy())
    margin = round(outcome.margin, 5) if isinstance(outcome, Found) else None
    return {"outcome": _kind(outcome), "programmes": outcome.spent, "seconds": round(spent, 3), "margin": margin}


def _trained(task: Task, options: dict[str, Any], seeds: int) -> dict[str, Any]:
    reached = [_batches(task, options, seed) for seed in range(seeds)]
    solved = [batches for batches in reached if batches is not None]
    return {"solved": len(solved), "seeds": seeds, "batches": statistics.median(solved) if solved else None}


def _batches(task: Task, options: dict[str, Any], seed: int) -> int | None:
    """How many batches it takes until every example is right; None if they do not suffice."""
    x, y = task.make(seed)
    net = _network(task, seed, x.shape[1])
    trainer = TargetPropagation(net, objective=sign_loss, **options)
    opt = torch.optim.Adam(net.parameters(), lr=_LR)
    for batch in range(_BATCHES + 1):
        if batch % 5 == 0:
            with torch.no_grad():
                if bool((net(x)[:, 0] * y > 0).all()):
                    return batch
        trainer.step(x, y[:, None], opt)
    return None


def _compared(task: Task, seeds: int) -> dict[str, Any]:
    rows = []
    for seed in range(seeds):
        x, y = task.make(seed)
        net = _network(task, seed, x.shape[1])
        outcome, layers = feasible_agreement(net, x, y, budget=_BUDGET, seed=seed)
        forced = asdict(brute_force(net, x, y, "1", losses=_each))
        row = {f"brute_{key}": value for key, value in forced.items() if key != "layer"}
        if layers:
            row |= {f"feasible_{key}": value for key, value in asdict(layers[0]).items() if key != "layer"}
        rows.append({**row, "found": float(isinstance(outcome, Found))})
    keys = sorted({key for row in rows for key in row})
    return {key: _mean([row[key] for row in rows if row.get(key) is not None]) for key in keys} | {"seeds": seeds}


def _each(outputs: Tensor, y: Tensor) -> Tensor:
    return F.softplus(-y * outputs[:, 0])


def _mean(values: list[float]) -> float | None:
    return round(statistics.fmean(values), 5) if values else None


def _measured(seed: int) -> Iterator[dict[str, Any]]:
    """Rows of the MNIST network."""
    data = load_data("mnist").train
    x, y = data.x.flatten(1), data.y
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(x.shape[1], 256), Sign(), nn.Linear(256, 256), Sign(), nn.Linear(256, 10))
    trainer, opt = TargetPropagation(net), torch.optim.Adam(net.parameters(), lr=1e-3)
    for epoch in range(_EPOCHS + 1):
        with torch.no_grad():
            wrong = round(100 * float((net(x[:_SHOWN]).argmax(1) != y[:_SHOWN]).double().mean()), 3)
        for depth, found in enumerate(target_quality(net, x[:_SHOWN], y[:_SHOWN], pairs=_PAIRS, seed=seed), start=1):
            row = {key: value for key, value in asdict(found).items() if key != "layer"}
            yield {"depth": depth, "epoch": epoch, "train_error": wrong, **_rounded(row)}
        if epoch < _EPOCHS:
            for batch in torch.randperm(len(x)).split(100):
                trainer.step(x[batch], y[batch], opt)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


def _run(results: Path, runs: Path, seeds: int, command: str) -> None:
    path = results / f"{TOY.name}.json"
    found = replace(load(path), command=command) if path.exists() else Results(TOY.name, command)

    def add(part: str, name: str, make: Callable[[], dict[str, Any]], **told: Any) -> None:
        nonlocal found
        run = f"{part}/{name}"
        if run not in {row.get("run") for row in found.rows}:
            found = found.merge({"run": run, "part": part, **told, **make(), "source": "measured"})
            found.save(path)

    for task in TASKS:
        for seed in range(seeds):
            add("search", f"{task.label}/{seed}", partial(_searched, task, seed), task=task.label, seed=seed)
    for seed in range(seeds):
        if f"network/{seed}/{_EPOCHS}/2" not in {row.get("run") for row in found.rows}:
            for row in _measured(seed):
                add("network", f"{seed}/{row['epoch']}/{row['depth']}", partial(dict, row), seed=seed)
    for task in FEASIBLE:
        add("targets", f"{task.label}/{seeds}", partial(_compared, task, seeds), task=task.label)
        for variant, options in VARIANTS.items():
            made = partial(_trained, task, options, seeds)
            add("training", f"{task.label}/{variant}/{seeds}", made, task=task.label, variant=variant)
    found.save(path)


TOY = Computed(
    "ftprop-toy", "feasible target propagation on tasks where all is known, and how good its targets are", _run
)
