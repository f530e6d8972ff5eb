"""The figures of Louizos, Welling, Kingma 2018, as rows of numbers; the docs draw them.

* 1: penalties |θ|^p for p = 2, 1, 1/2, 1/4 and the L0 norm.
* 2a: the binary concrete density at log α = 0, β = 1/2, and the hard concrete distribution that stretching it to
  (−0.1, 1.1) and clipping makes: a density on (0, 1) and two atoms.
* 2b: what replaces the L0 norm: P(z ≠ 0) of the hard concrete gate, its test-time estimate and its mean, against log α.
* 3: expected FLOPs of one forward pass while training (one multiply and one add each), LeNet-300-100 and LeNet-5-Caffe,
  read from the runs of `python -m evidence table louizos2018-mnist`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from evidence.tables.computed import Computed
from evidence.tables.louizos2018 import MNIST
from paring.cli.results import Results, load
from paring.gates.relax import HardConcrete
from paring.train import read_metrics


def _curve(figure: str, label: str, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    xs, ys = ([round(v, 6) for v in t.double().tolist()] for t in (x, y))
    return {"run": f"figure {figure}/{label}", "figure": figure, "label": label, "x": xs, "y": ys, "source": "measured"}


def _norms() -> Iterator[dict[str, Any]]:
    theta = torch.arange(-100, 101, dtype=torch.float64) / 50
    for p in (2.0, 1.0, 0.5, 0.25):
        yield _curve("1", f"p = {p:g}", theta, theta.abs() ** p)
    yield _curve("1", "p = 0", theta, (theta != 0).double())


def _distributions() -> Iterator[dict[str, Any]]:
    beta, gate = 0.5, HardConcrete(beta=0.5)
    x = torch.linspace(0.005, 0.995, 199, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros((), dtype=torch.float64)
    plain = torch.sigmoid(beta * torch.logit(x))
    yield _curve("2a", "binary concrete", x.detach(), torch.autograd.grad(plain.sum(), x)[0])
    stretched = gate.cdf(x, zero)
    yield _curve("2a", "hard concrete, on (0, 1)", x.detach(), torch.autograd.grad(stretched.sum(), x)[0])
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    closed = 1 - gate.prob_open(zero)
    yield _curve("2a", "hard concrete, atoms", ends, torch.stack([closed, 1 - gate.cdf(torch.ones_like(zero), zero)]))


def _surrogates() -> Iterator[dict[str, Any]]:
    gate = HardConcrete()
    log_alpha = torch.linspace(-6, 6, 121, dtype=torch.float64)
    yield _curve("2b", "P(z ≠ 0)", log_alpha, gate.prob_open(log_alpha))
    yield _curve("2b", "test-time gate", log_alpha, gate.estimate(log_alpha))
    yield _curve("2b", "mean of z", log_alpha, gate.mean(log_alpha))


def _training(runs: Path) -> Iterator[dict[str, Any]]:
    for entry in MNIST.entries(0):
        model, path = entry.experiment.model, runs / entry.experiment.name / "metrics.jsonl"
        if not path.exists():
            continue
        rows = [row for row in read_metrics(path) if "expected_flops" in row and "epoch" in row]
        if len(rows) == entry.experiment.recipe.epochs:
            x, y = (torch.tensor([row[key] for row in rows]) for key in ("epoch", "expected_flops"))
            yield {**_curve("3", f"{model}, {entry.label}", x, y), "model": model, "method": entry.label}


def _run(results: Path, runs: Path, seeds: int, command: str) -> None:
    path = results / f"{FIGURES.name}.json"
    found = replace(load(path), command=command) if path.exists() else Results(FIGURES.name, command)
    for row in (*_norms(), *_distributions(), *_surrogates(), *_training(runs)):
        found = found.merge(row)
    found.save(path)


FIGURES = Computed(
    "louizos2018-figures", "figures 1, 2a, 2b and 3 of the paper (3 needs the runs of louizos2018-mnist)", _run
)
