"""A run's folder, read as `paring report` and `paring pack` read it."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from paring.cli.experiment import RESULT, SMALL
from paring.cli.fuzz.result_format import DEMO, ROW, changed_json, planted_json
from paring.cli.page import run_page
from paring.cli.reading import RunError, architecture_of, read_result
from paring.cli.trained_network import given
from paring.core import FileError
from paring.cost import report
from paring.files import PareError, load, save
from paring.models import build
from paring.testing.fuzz.format import Case, Format, Seed
from paring.testing.fuzz.mutate import damaged, everywhere
from paring.train import METRICS, RecordError, read_metrics

CONFIG = "config.json"
_METRICS = [
    {"note": "costs are counted"},
    *(
        {
            "epoch": epoch,
            "step": 8 * epoch,
            "loss": 2.0 / epoch,
            "lr": 0.001,
            "seconds": 0.5 * epoch,
            "error": 9.0 / epoch,
        }
        | {
            "expected_parameters": 900.0,
            "support_macs": 800.0,
            "units": {"fc1": 30, "fc2": 20},
            "shrinks": [{"done": True}],
        }
        for epoch in (1, 2, 3)
    ),
]


class RunFolder(Format):
    """Config, record, result and network, one or two of them changed. There is no checksum over all of them."""

    name = "run"
    errors = (RunError, RecordError, FileError, PareError)

    def seeds(self) -> list[Seed]:
        files = {
            CONFIG: json.dumps({"type": "Experiment", "model": "lenet_300_100", "validation": 20}).encode(),
            METRICS: "".join(json.dumps(row) + "\n" for row in _METRICS).encode(),
            RESULT: json.dumps(ROW).encode(),
            SMALL: _network(),
        }
        demo = {**files, RESULT: json.dumps(DEMO).encode()}
        return [
            Seed("all but the network", files, _read),
            Seed("all, to a page", files, _read_to_a_page, 0.02),
            Seed("the demo's, to a page", demo, _read_to_a_page, 0.02),
        ]

    def changed(self, seed: Seed, chance: random.Random) -> Case:
        files = dict(seed.files)
        for name in chance.sample(sorted(files), chance.choice((1, 1, 2))):
            match name:
                case "small.safetensors":
                    files[name] = damaged(files[name], chance)
                case "metrics.jsonl":
                    files[name] = _lines(files[name], chance)
                case _:
                    files[name] = changed_json(files[name], chance)
        return Case(files, forged=True)

    def planted(self, seed: Seed, every: int = 1) -> Iterator[Case]:
        yield from planted_json(seed, CONFIG, every)
        yield from planted_json(seed, RESULT, every)
        lines = seed.files[METRICS].splitlines()
        for number, line in enumerate(lines):
            for found in everywhere(json.loads(line), every if seed.weight == 1 else 23 * every):
                changed = [*lines[:number], json.dumps(found).encode(), *lines[number + 1 :]]
                yield Case({**seed.files, METRICS: b"\n".join(changed) + b"\n"}, forged=True)


def _lines(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return damaged(data, chance)
    lines = data.splitlines()
    at = chance.randrange(len(lines))
    lines[at] = changed_json(lines[at], chance)
    return b"\n".join(lines) + (b"\n" if chance.random() < 0.9 else b"")


def _network() -> bytes:
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        save(build("lenet_300_100", shape=(1, 8, 8), classes=10), Path(folder) / SMALL)
        return (Path(folder) / SMALL).read_bytes()


def _read(folder: Path) -> object:
    row = read_result(folder / RESULT)
    told, shards = given(folder)
    return (
        row,
        told,
        list(shards),
        None if row is None else architecture_of(row, folder / RESULT),
        read_metrics(folder / METRICS),
    )


def _read_to_a_page(folder: Path) -> object:
    row = read_result(folder / RESULT)
    if row is None:
        return None
    model, shape, classes = architecture_of(row, folder / RESULT)
    net = load(lambda: build(model, shape=shape, classes=classes), folder / SMALL)
    layers = report(net, torch.zeros(2, *shape))
    return run_page(
        "a run", row, [line for line in read_metrics(folder / METRICS) if "epoch" in line], layers.rows
    ), net
