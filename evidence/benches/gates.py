"""`python -m evidence bench gates`: what gates cost per training step, against dense, place by place."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from evidence.benches.book import Asked, Book
from paring.core import Method
from paring.cost import compare_times
from paring.cost.latency import in_turns
from paring.methods import L0, Budget, Dense
from paring.models import build
from paring.run import attach

_PAPER: dict[str, tuple[str, ...]] = {
    "lenet5_caffe": ("units:Conv2d", "inputs:Linear"),
    "lenet_300_100": ("inputs",),
}
_SETTINGS: tuple[tuple[str, Method], ...] = (
    ("dense", Dense()),
    ("units", L0(price=1e-6, at="units")),
    ("units, Budget(macs=0.25)", L0(price=Budget(macs=0.25), at="units")),
    ("units, one sample per example", L0(price=1e-6, at="units", per_example=True)),
    ("weights", L0(price=1e-6, at="weights")),
)


def _stepper(model: str, method: Method) -> Callable[[], None]:
    """One training step on a batch of 100 MNIST-sized images, as `fit` does it."""
    torch.manual_seed(0)
    net = build(model, shape=(1, 28, 28), classes=10)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = torch.rand(100, 1, 28, 28).contiguous(memory_format=torch.channels_last), torch.randint(0, 10, (100,))
    run = attach(net, method, x[:2], steps=10**9)
    opt = torch.optim.Adam(run.parameter_groups(1e-3), fused=True)

    def step() -> None:
        opt.zero_grad()
        (F.cross_entropy(net(x), y) + run.penalty()).backward()
        run.step(opt)

    return step


def run(asked: Asked) -> Path:
    """Measure every network of which the results file lacks a row, all its settings in turns."""
    book = Book(asked, "gates")
    for model, places in _PAPER.items():
        settings = (*_SETTINGS, ("the paper's: " + " + ".join(places), L0(price=1e-6, at=places)))
        if not any(book.wants(f"{model}/{label}") for label, _ in settings):
            continue
        steps = {label: _stepper(model, method) for label, method in settings}
        for step in steps.values():
            for _ in range(5):
                step()
        times = {label: [clock for clock, _ in taken] for label, taken in in_turns(steps, asked.repeats).items()}
        for label in steps:
            paired = [mine / dense for mine, dense in zip(times[label], times["dense"], strict=True)]
            said = compare_times(times["dense"], times[label]).said
            quarters = statistics.quantiles(paired, n=4)
            row: dict[str, Any] = {
                "run": f"{model}/{label}",
                "model": model,
                "setting": label,
                "milliseconds": 1e3 * statistics.median(times[label]),
                "overhead_percent": None if said is None else 100 * (1 / said - 1),
                "ratio": said,
                "ratio_low": 1 / quarters[2],
                "ratio_high": 1 / quarters[0],
                "repeats": asked.repeats,
            }
            if book.wants(row["run"]):
                book.add(row)
                told = "too noisy to say" if said is None else f"{row['overhead_percent']:+6.1f} %"
                print(f"{model:<16}{label:<44}{row['milliseconds']:8.2f} ms  {told}", flush=True)
    return book.close()
