"""`python -m evidence bench prune-times`: how long the networks of `bench prune` take once they are cut, and asked and got.

All networks that are made from one dense network at one budget are timed side by side: an answer (64 examples) and a training
step (the subject's batch), as shares of the dense network's. Budgets of latency are for the subject's batch, and timed on it. Nothing is trained.
"""

from __future__ import annotations

import copy
import statistics
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import paring as pr
from evidence.benches import prune_peers as peers
from evidence.benches.book import Asked, Book
from evidence.benches.prune_subjects import SUBJECTS, Subject, classify
from evidence.benches.trained_networks import FURTHER, WAYS, trained
from paring.cost import latency, ratio
from paring.cost.latency import in_turns

SHOWN = ("resnet20", "resnet8", "vit", "gpt")
LATENCIES = (0.7, 0.5)
_COMPARED = {
    name: (WAYS | FURTHER)[name]
    for name in ("paring", "paring, widths in eights", "Torch-Pruning, L2", "uniform by magnitude")
}
_BATCH = 64


def run(asked: Asked) -> Path:
    """Time every network and budget that the results file lacks."""
    book = Book(asked, "prune-times")
    torch.set_num_threads(1)
    for subject in (SUBJECTS[name] for name in SHOWN):
        for share in subject.budgets:
            name = f"{subject.name}/{share}"
            if book.wants(name):
                for row in _cut(subject, share, asked):
                    book.add({"run": f"{name}/{row['method']}", **row})
                    print(
                        f"{name}/{row['method']}: {row['latency']:.2f} of the time, {row['step']:.2f} of a step's",
                        flush=True,
                    )
        for share in LATENCIES:
            name = f"{subject.name}/latency {share}"
            if book.wants(name):
                row = _asked(subject, share, asked)
                book.add({"run": name, **row})
                print(f"{name}: predicted {row['predicted']:.2f}, measured {row['latency']:.2f}", flush=True)
    return book.close()


def _cut(subject: Subject, share: float, asked: Asked) -> list[dict[str, Any]]:
    net = trained(subject, asked.runs / "prune")
    nets, seconds = {"dense": net}, {}
    for way, how in _COMPARED.items():
        torch.manual_seed(1_000)
        began = time.process_time()
        try:
            nets[way] = how.cut(subject, net, share)
        except RuntimeError:  # a peer may not come down to the budget
            continue
        seconds[way] = time.process_time() - began
    times = latency(nets, subject.example(), batch=_BATCH, repeats=asked.repeats)
    steps = _steps(subject, nets, asked.repeats)
    return [
        {
            "model": subject.name,
            "budget": share,
            "method": way,
            "macs": peers.macs(nets[way], subject) / peers.macs(net, subject),
            "search_cpu_seconds": taken,
            "latency": ratio(times[way], times["dense"]),
            "latency_ms": times[way].median_s * 1e3,
            "dense_latency_ms": times["dense"].median_s * 1e3,
            "step": statistics.median(a / b for a, b in zip(steps[way], steps["dense"], strict=True)),
        }
        for way, taken in seconds.items()
    ]


def _steps(subject: Subject, nets: dict[str, nn.Module], repeats: int) -> dict[str, list[float]]:
    """Seconds of a forward and backward pass in train mode, in turns."""
    batch: tuple[Tensor, Tensor] = next(iter(subject.parts().train))
    copies = {name: copy.deepcopy(net).train() for name, net in nets.items()}

    def step(net: nn.Module) -> None:
        on = subject.tune.autocast is not None
        with torch.autocast("cpu", dtype=subject.tune.autocast or torch.bfloat16, enabled=on):
            classify(net, batch).backward()

    taken = in_turns({name: partial(step, net) for name, net in copies.items()}, repeats)
    return {name: [clock for clock, _ in each] for name, each in taken.items()}


def _asked(subject: Subject, share: float, asked: Asked) -> dict[str, Any]:
    """A budget of latency: what was asked for, what the table of layers predicted, and what the network takes."""
    net = trained(subject, asked.runs / "prune")
    torch.manual_seed(1_000)
    calibration = list(islice(subject.parts().train, peers.BATCHES))
    small, outcome = pr.prune(net, calibration, classify, to=pr.Budget(latency=share), epochs=0)
    times = latency({"dense": net, "small": small}, calibration[0][0], repeats=2 * asked.repeats)
    return {
        "model": subject.name,
        "method": "paring",
        "budget": share,
        "predicted": outcome.predicted["latency"],
        "told": outcome.shares["latency"],
        "latency": ratio(times["small"], times["dense"]),
    }
