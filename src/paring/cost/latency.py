"""Measured time of forward passes, paired: all networks take turns in one process, so that drift hits them alike.

Each sample runs a network often enough to last a couple of milliseconds, and each round samples every network once, in
a shuffled order that the next round takes backwards (A B, B A). Comparing rounds pairwise (``ratio``) cancels slow
changes of clock speed and load; a median is unmoved by samples that were pre-empted. On one thread the CPU time is
measured beside the clock: other processes do not add to it. A claim of speed should quote ``compare``, which says when
the times are too noisy for one, with threads and batch size.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from paring.core import Example, Inputs

_SAMPLE_S = 2e-3


@dataclass(frozen=True)
class Latency:
    """Seconds for one forward pass of the whole batch: median, 10th and 90th percentile, and every sample in order.

    ``cpu``: CPU seconds of the same samples, where one thread of a CPU did all of the work.
    """

    median_s: float
    p10: float
    p90: float
    runs: tuple[float, ...]
    cpu: tuple[float, ...] = ()


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

    ``example``: a tensor, a tuple of arguments or a mapping of keyword arguments.

    ``threads``: for CPU operators. ``repeats``: rounds of one sample per network. ``warmup``: passes before timing.
    Modes, thread count and garbage collection are put back afterwards. On CUDA every sample is synchronised.
    Raises ``ValueError`` for no networks, an empty example or numbers below 1.
    """
    if not nets:
        raise ValueError("no networks to time; pass a mapping from names to modules")
    for name, value in (("batch", batch), ("threads", threads), ("repeats", repeats)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value} but must be at least 1")
    inputs = _batched(Inputs.of(example), batch)
    device = inputs.tensors[0].device
    with _quiet(nets, threads), torch.inference_mode():
        inner = {name: _enough(net, inputs, device, warmup) for name, net in nets.items()}
        tasks = {name: partial(_passes, net, inputs, device, inner[name]) for name, net in nets.items()}
        taken = in_turns(tasks, repeats)
    alone = threads == 1 and device.type == "cpu"
    return {name: _summary(samples, inner[name], alone) for name, samples in taken.items()}


def in_turns(tasks: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of every task in every round, by the clock and of this thread's CPU time; each second round runs backwards."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    order, shuffle = list(tasks), random.Random(0)
    for number in range(repeats):
        if number % 2:
            order.reverse()
        else:
            shuffle.shuffle(order)
        for name in order:
            taken[name].append(_time(tasks[name]))
    return taken


def _summary(taken: list[tuple[float, float]], count: int, alone: bool) -> Latency:
    runs, cpu = (tuple(seconds / count for seconds in part) for part in zip(*taken, strict=True))
    p10, median, p90 = (float(q) for q in np.quantile(runs, [0.1, 0.5, 0.9]))
    return Latency(median, p10, p90, runs, cpu if alone else ())


def _batched(inputs: Inputs, batch: int | None) -> Inputs:
    if not inputs.tensors or any(x.dim() == 0 or x.shape[0] == 0 for x in inputs.tensors):
        raise ValueError(f"the example has shapes {inputs}; every input needs a leading batch axis with an entry")
    if batch is None:
        return inputs
    return inputs.map(lambda x: x[torch.arange(batch, device=x.device) % x.shape[0]])


def _time(task: Callable[[], object]) -> tuple[float, float]:
    started, cpu = time.perf_counter(), time.thread_time()
    task()
    return time.perf_counter() - started, time.thread_time() - cpu


def _passes(net: nn.Module, inputs: Inputs, device: torch.device, count: int) -> None:
    """So many passes, one after the other, and nothing left to do at the end."""
    for _ in range(count):
        net(*inputs.args, **inputs.kwargs)
    _synchronise(device)


def _enough(net: nn.Module, inputs: Inputs, device: torch.device, warmup: int) -> int:
    """How many passes last a sample, after warming up: three times in a row, so that one pause does not cut it short."""
    _passes(net, inputs, device, warmup)
    count = 1
    while any(_time(partial(_passes, net, inputs, device, count))[0] < _SAMPLE_S for _ in range(3)):
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
