"""`python -m evidence bench prune`: trained networks, made smaller in several ways, trained on alike, compared.

For each network, budget and seed all ways start from the same trained weights, reach the same multiply-accumulates, and are
trained on with the same steps, optimizer, schedule, augmentation and teacher. The test set is looked at once, in the end.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evidence.benches import prune_peers as peers
from evidence.benches.book import Asked, Book
from evidence.benches.prune_subjects import SUBJECTS, Subject, classify
from paring.cost import latency
from paring.files import pack, unpack
from paring.pruning import Search, Teacher, tune
from paring.pruning.norms import renew_statistics

SEEDS = 3
WEIGHTS = Path("results") / "networks"


@dataclass(frozen=True)
class Way:
    """A way to make a network smaller.

    cut: gives the network before training. fresh: trains it from new weights. teacher: the same for all but the ways that are
    about it.
    """

    cut: peers.Cut
    fresh: bool = False
    teacher: Teacher = Teacher(fades=False)  # noqa: RUF009  # a frozen value


WAYS: dict[str, Way] = {
    "paring": Way(peers.ours(Search())),
    "Torch-Pruning, L2": Way(peers.torch_pruning("GroupMagnitude")),
    "Torch-Pruning, Taylor": Way(peers.torch_pruning("GroupTaylor")),
    "uniform by magnitude": Way(peers.uniform),
    "widths of paring, from scratch": Way(peers.ours(Search()), fresh=True),
}
FURTHER: dict[str, Way] = {
    "paring, widths in eights": Way(peers.ours(Search(), multiple_of=8)),
    "paring, the teacher fades": Way(peers.ours(Search()), teacher=Teacher()),
    "Torch-Pruning, Hessian": Way(peers.torch_pruning("GroupHessian")),
    "paring, one round": Way(peers.ours(Search(rounds=1))),
    "paring, without repair": Way(peers.ours(Search(repair=False))),
}
_ALL = WAYS | FURTHER


def run(asked: Asked) -> Path:
    """Measure every network, budget, way and seed that the results file lacks."""
    book = Book(asked, "prune")
    torch.set_num_threads(1)
    for subject, share, way, seed in _cases(asked.seeds or SEEDS):
        name = f"{subject.name}/{share}/{way}/{seed}"
        if not book.wants(name):
            continue
        if asked.epochs:
            subject = replace(subject, tune=replace(subject.tune, epochs=asked.epochs))
        row = {"run": name, **measure(subject, share, way, seed, asked.runs / "prune")}
        book.add(row)
        print(f"{name}: {row['cut_error']:.2f} → {row['error']:.2f}, {row['macs']:.1%} of the MACs", flush=True)
    return book.close()


def _cases(seeds: int) -> Iterator[tuple[Subject, float, str, int]]:
    for subject in SUBJECTS.values():
        for ways in (WAYS, FURTHER):
            for seed in range(seeds):
                for share in subject.budgets:
                    for way in ways:
                        yield subject, share, way, seed
                if ways is WAYS:
                    yield subject, 1.0, "dense, trained on", seed


def measure(subject: Subject, share: float, way: str, seed: int, folder: Path) -> dict[str, Any]:
    """One row: cut, train on, and judge."""
    net, parts = trained(subject, folder), subject.parts()
    dense_macs, dense_error = peers.macs(net, subject), subject.error(net, parts.test)
    torch.manual_seed(1_000 + seed)
    began, cpu = time.perf_counter(), time.process_time()
    small = copy.deepcopy(net) if way not in _ALL else _ALL[way].cut(subject, net, share)
    searched, searched_cpu = time.perf_counter() - began, time.process_time() - cpu
    if way in _ALL and _ALL[way].fresh:
        small = peers.reset(small)
    else:
        renew_statistics(small, [batch for batch, _ in zip(parts.train, range(peers.BATCHES), strict=False)], classify)
    cut_error = subject.error(small, parts.validation)
    torch.manual_seed(seed)
    cpu = time.process_time()
    how = _ALL[way].teacher if way in _ALL else Way.teacher
    teacher = how.of(copy.deepcopy(net), logits=True)
    done = tune(small, parts.train, classify, subject.tune, teacher=teacher)
    times = latency({"dense": net, "small": small}, subject.example(), batch=64, repeats=10)
    return {
        "model": subject.name,
        "data": subject.data,
        "method": way,
        "budget": share,
        "seed": seed,
        "macs": peers.macs(small, subject) / dense_macs,
        "parameters": sum(p.numel() for p in small.parameters()),
        "dense_error": dense_error,
        "cut_error": cut_error,
        "validation_error": subject.error(small, parts.validation),
        "error": subject.error(small, parts.test),
        "percent": subject.percent,
        "epochs": subject.tune.epochs,
        "steps": done.steps,
        "search_seconds": searched,
        "search_cpu_seconds": searched_cpu,
        "train_seconds": done.seconds,
        "train_cpu_seconds": time.process_time() - cpu,
        "latency_ms": times["small"].median_s * 1e3,
        "dense_latency_ms": times["dense"].median_s * 1e3,
    }


def trained(subject: Subject, folder: Path) -> nn.Module:
    """The dense network with its trained weights: from results/networks, or trained now and kept there."""
    file = WEIGHTS / f"{subject.name}.pare"
    if not file.exists():
        torch.manual_seed(0)
        net = subject.build()
        folder.mkdir(parents=True, exist_ok=True)

        def said(epoch: int) -> None:
            print(f"{subject.name}, dense: epoch {epoch} of {subject.dense.epochs}", flush=True)

        tune(
            net,
            subject.parts().train,
            classify,
            subject.dense,
            file=folder / f"{subject.name}.dense.pt",
            after_epoch=said,
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        pack(net, file)
    return unpack(subject.build(), file).eval()
