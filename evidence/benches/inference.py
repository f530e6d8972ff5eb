"""`python -m evidence bench inference`: how much of the saving in MACs is a saving in time.

Latency depends on the shapes, not on the values: units chosen at random are closed in every layer alike (on residual
streams too) until the asked share of the MACs is left, and `pr.compact` takes them out. Widths are either left as they
come or rounded to multiples of 8 or 16. Every network, the dense one too, counts with its faster memory format. All
variants of a network take turns in one process, on as many threads as the user set; ratios are medians over rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evidence.benches.book import Asked, Book
from evidence.benches.dead import SUBJECTS, Subject, kill, width
from evidence.benches.runtimes import has_onnxruntime, variants
from paring.cli.human import milliseconds
from paring.cost import Latency, compare, latency, measure
from paring.removal import compact

MODELS = ("lenet5_caffe", "vgg16", "resnet20")
BATCHES = (1, 128)
BUDGETS = (0.5, 0.25, 0.1)
MULTIPLES = (1, 8, 16)
_TRIES, _NEAR = 8, 0.02


def run(asked: Asked) -> Path:
    """Measure every network and batch size of which the results file lacks a row."""
    book = Book(asked, "inference")
    runtimes = ["torch"] + ["onnxruntime"] * has_onnxruntime()
    if len(runtimes) == 1:
        print("onnxruntime is not installed (pip install 'paring[bench]'): its rows are left out")
    for model in MODELS:
        for batch in BATCHES:
            names = [
                _name(model, batch, budget, multiple, runtime)
                for budget in BUDGETS
                for multiple in MULTIPLES
                for runtime in runtimes
            ]
            if not any(book.wants(name) for name in names):
                continue
            for row in rows_of(model, batch, asked.repeats):
                if book.wants(row["run"]):
                    book.add(row)
                    print(_line(row), flush=True)
    return book.close()


def rows_of(model: str, batch: int, repeats: int) -> Iterator[dict[str, Any]]:
    """One row per budget, rounding and runtime, all timed together with the dense network.

    `ratio` is dense time / small time, `mac_ratio` dense MACs / small MACs, `realised` the first over the second, and
    `saved` the share of the time that went over the share of the MACs that went; all three are None where the times are
    too noisy to say. `ratio_low` to `ratio_high` is the interval, `by` what was compared: the clock or CPU time.
    """
    subject = SUBJECTS[model]
    dense, macs = _small(subject, _widths(subject, 1.0, 1))
    small = {
        (budget, multiple): found
        for multiple in MULTIPLES
        for budget, found in fitted(subject, BUDGETS, multiple).items()
    }
    example = torch.randn(batch, *subject.shape, generator=torch.Generator().manual_seed(0))
    nets = {"dense": dense} | {str(asked): net for asked, (net, _) in small.items()}
    ways = {name: variants(net, example) for name, net in nets.items()}
    every = {
        f"{name}/{runtime}/{way}": made
        for name, runtimes in ways.items()
        for runtime, made_there in runtimes.items()
        for way, made in made_there.items()
    }
    times = latency(every, example, threads=torch.get_num_threads(), repeats=repeats)
    for runtime, forms in ways["dense"].items():
        base, base_form = _fastest(times, f"dense/{runtime}", list(forms))
        for (budget, multiple), (net, left) in small.items():
            time, form = _fastest(times, f"{(budget, multiple)}/{runtime}", list(forms))
            macs_ratio, found = macs / left, compare(base, time)
            said = found.said
            yield {
                "run": _name(model, batch, budget, multiple, runtime),
                "model": model,
                "batch": batch,
                "budget": budget,
                "multiple_of": multiple,
                "runtime": runtime,
                "macs": left,
                "dense_macs": macs,
                "mac_ratio": macs_ratio,
                "ratio": said,
                "ratio_low": found.low,
                "ratio_high": found.high,
                "by": found.by,
                "realised": None if said is None else said / macs_ratio,
                "saved": None if said is None else (1 - 1 / said) / (1 - 1 / macs_ratio),
                "dense_ms": 1e3 * base.median_s,
                "milliseconds": 1e3 * time.median_s,
                "dense_format": base_form,
                "format": form,
                "widths": [width(net, group) for group in subject.groups],
                "repeats": repeats,
            }


def fitted(subject: Subject, budgets: Sequence[float], multiple: int) -> dict[float, tuple[nn.Module, int]]:
    """Per budget, the network whose widths are cut by one factor so that its MACs come nearest; and its MACs."""
    whole = _small(subject, _widths(subject, 1.0, 1))[1]
    made: dict[tuple[int, ...], tuple[nn.Module, int]] = {}
    for budget in budgets:
        low, high = 0.0, 1.0
        share = math.sqrt(budget)
        for _ in range(_TRIES):
            widths = _widths(subject, share, multiple)
            if widths not in made:
                made[widths] = _small(subject, widths)
            left = made[widths][1] / whole
            if abs(left / budget - 1) < _NEAR:
                break
            low, high = (share, high) if left < budget else (low, share)
            share = (low + high) / 2
    return {budget: min(made.values(), key=lambda found: abs(found[1] / whole - budget)) for budget in budgets}


def _widths(subject: Subject, share: float, multiple: int) -> tuple[int, ...]:
    """Units left in each group: the share of them, rounded to a multiple, at least one multiple, at most all."""
    with torch.random.fork_rng(devices=[]):
        net = subject.make()
    wholes = [width(net, group) for group in subject.groups]
    return tuple(min(whole, max(multiple, multiple * round(share * whole / multiple))) for whole in wholes)


def _small(subject: Subject, widths: Sequence[int]) -> tuple[nn.Module, int]:
    """The network with these widths, made by closing random units and removing them; and its MACs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = subject.make().eval()
    generator = torch.Generator().manual_seed(0)
    for group, kept in zip(subject.groups, widths, strict=True):
        order = torch.randperm(width(net, group), generator=generator)
        kill(net, group, order[kept:].sort().values, "zero", generator)
    example = torch.randn(2, *subject.shape, generator=generator)
    net, _ = compact(net, example, inplace=True, verify=False)
    left = tuple(width(net, group) for group in subject.groups)
    if left != tuple(widths):
        raise RuntimeError(f"asked for {widths} units, but {left} are left: some could not be removed")
    macs = measure(net, example).macs
    assert macs is not None
    return net, macs


def _fastest(times: dict[str, Latency], name: str, forms: list[str]) -> tuple[Latency, str]:
    form = min(forms, key=lambda form: times[f"{name}/{form}"].median_s)
    return times[f"{name}/{form}"], form


def _name(model: str, batch: int, budget: float, multiple: int, runtime: str) -> str:
    return f"{model}/batch {batch}/{budget:g}/multiples of {multiple}/{runtime}"


def _line(row: dict[str, Any]) -> str:
    times = f"{milliseconds(row['dense_ms'])} to {milliseconds(row['milliseconds'])}"
    told = f"too noisy to say how fast ({times})"
    if row["ratio"] is not None:
        told = f"{row['ratio']:6.2f} times as fast ({100 * row['realised']:.0f} %; {times})"
    return f"{row['run']:<60}{row['mac_ratio']:6.2f} times fewer MACs, {told}"
