"""Measured time of forward passes, paired: all networks take turns in one process, so that drift hits them alike.

Each sample runs a network often enough to last a couple of milliseconds, and each round samples every network once, in
a shuffled order. Comparing rounds pairwise (``ratio``) cancels slow changes of clock speed and load; a median is
unmoved by the odd interruption. A claim of speed should quote such a ratio, with threads and batch size.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Example = Tensor | tuple[Tensor, ...]
_SAMPLE_S = 2e-3


@dataclass(frozen=True)
class Latency:
    """Seconds for one forward pass of the whole batch: median, 10th and 90th percentile, and every sample in order."""

    median_s: float
    p10: float
    p90: float
    runs: tuple[float, ...]


def ratio(a: Latency, b: Latency) -> float:
    """Median over rounds of ``a``'s time over ``b``'s; below 1 when ``a`` is faster.

    Raises ``ValueError`` when they were not measured together.
    """
    if len(a.runs) != len(b.runs):
        raise ValueError(f"{len(a.runs)} and {len(b.runs)} runs cannot be paired; measure both in one call of latency")
    return float(np.median(np.divide(a.runs, b.runs)))


def latency(
    nets: Mapping[str, nn.Module],
    example: Example,
    *,
    batch: int | None = None,
    threads: int = 1,
    repeats: int = 30,
    warmup: int = 3,
) -> dict[str, Latency]:
    """Time ``nets`` on ``example`` (leading axis = batch, cut or cycled to ``batch`` examples), in evaluation mode.

    ``threads``: for CPU operators. ``repeats``: rounds of one sample per network. ``warmup``: passes before timing.
    Modes, thread count and garbage collection are put back afterwards. On CUDA every sample is synchronised.
    Raises ``ValueError`` for no networks, an empty example or numbers below 1.
    """
    if not nets:
        raise ValueError("no networks to time; pass a mapping from names to modules")
    for name, value in (("batch", batch), ("threads", threads), ("repeats", repeats)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value} but must be at least 1")
    inputs = _batched(example, batch)
    device = inputs[0].device
    samples: dict[str, list[float]] = {name: [] for name in nets}
    order, shuffle = list(nets), random.Random(0)
    with _quiet(nets, threads), torch.inference_mode():
        inner = {name: _enough(net, inputs, device, warmup) for name, net in nets.items()}
        for _ in range(repeats):
            shuffle.shuffle(order)
            for name in order:
                samples[name].append(_time(nets[name], inputs, device, inner[name]) / inner[name])
    return {name: _summary(runs) for name, runs in samples.items()}


def _summary(runs: list[float]) -> Latency:
    p10, median, p90 = (float(q) for q in np.quantile(runs, [0.1, 0.5, 0.9]))
    return Latency(median, p10, p90, tuple(runs))


def _batched(example: Example, batch: int | None) -> tuple[Tensor, ...]:
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    if not inputs or any(x.dim() == 0 or x.shape[0] == 0 for x in inputs):
        shapes = [tuple(x.shape) for x in inputs]
        raise ValueError(f"the example has shapes {shapes}; every input needs a leading batch axis with an entry")
    if batch is None:
        return inputs
    return tuple(x[torch.arange(batch, device=x.device) % x.shape[0]] for x in inputs)


def _time(net: nn.Module, inputs: tuple[Tensor, ...], device: torch.device, count: int) -> float:
    """Seconds for ``count`` passes."""
    _synchronise(device)
    start = time.perf_counter()
    for _ in range(count):
        net(*inputs)
    _synchronise(device)
    return time.perf_counter() - start


def _enough(net: nn.Module, inputs: tuple[Tensor, ...], device: torch.device, warmup: int) -> int:
    """How many passes last a sample, after warming up."""
    for _ in range(warmup):
        net(*inputs)
    count = 1
    while _time(net, inputs, device, count) < _SAMPLE_S:
        count *= 2
    return count


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _quiet(nets: Mapping[str, nn.Module], threads: int) -> Iterator[None]:
    """Evaluation mode, ``threads`` threads and no garbage collection inside; everything as it was outside."""
    modes = [(module, module.training) for net in nets.values() for module in net.modules()]
    before, collecting = torch.get_num_threads(), gc.isenabled()
    try:
        for net in nets.values():
            net.eval()
        torch.set_num_threads(threads)
        gc.disable()
        yield
    finally:
        if collecting:
            gc.enable()
        torch.set_num_threads(before)
        for module, training in modes:
            module.training = training
