"""`python -m evidence bench removal`: the same dead units, removed by three libraries. What moved, what is left, how long it took.

All libraries run on one thread, as `pr.compact` does by itself, and every row says so.
"""

from __future__ import annotations

import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evidence.benches.book import Asked, Book
from evidence.benches.dead import KINDS, SUBJECTS, Kind, half_dead
from evidence.benches.tools import FUSED, TOOLS, Dead, Missing, Remove, lenient, tool_version, unverified
from paring.analysis.alone import alone

MODELS = ("lenet_300_100", "mlp_bn", "conv_bn", "resnet20", "resnet50", "vit")
NORMED = ("mlp_bn", "conv_bn", "resnet20", "resnet50")  # where there is a BatchNorm to fuse
EXACT = 1e-5
BUSY = 1.25  # more seconds by the clock than of CPU time: something else was running


def run(asked: Asked) -> Path:
    """Measure every network, kind and tool that the results file lacks."""
    book = Book(asked, "removal")
    with alone():
        _measure(book, asked)
    return book.close()


def _measure(book: Book, asked: Asked) -> None:
    warm: set[str] = set()
    for model in MODELS:
        for kind in KINDS:
            tools = [tool for tool in TOOLS if tool != FUSED or model in NORMED]
            wanted = [tool for tool in tools if book.wants(f"{model}/{kind}/{tool}")]
            for tool in {*wanted} - warm:  # what a library loads at its first call is not the time of a removal
                compare("lenet_300_100", "zero", [tool], 1)
                warm.add(tool)
            for row in compare(model, kind, wanted, asked.repeats):
                book.add(row)
                print(_line(row), flush=True)


def compare(model: str, kind: Kind, tools: list[str], repeats: int) -> list[dict[str, Any]]:
    """One row per tool; times are medians of repetitions that take turns.

    `seconds` are by the clock, `cpu_seconds` of this thread: nearly the same on a quiet machine. `error` is the largest
    difference of an output from the dense network's, in eval mode, on a batch of 8 random inputs of the example's size;
    `exact` says that it is within 1e-5 of the largest output. `seconds_unverified` is our time without the check, where
    that comes to the same network.
    """
    subject = SUBJECTS[model]
    net, dead = half_dead(subject, kind)
    generator = torch.Generator().manual_seed(1)
    example, inputs = (torch.randn(count, *subject.shape, generator=generator) for count in (2, 8))
    with torch.no_grad():
        outputs = net(inputs)
    base = {"model": model, "kind": kind, "dense_parameters": _parameters(net), "scale": outputs.abs().max().item()}
    found: dict[str, dict[str, Any]] = {}
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(repeats):
        for tool in tools:
            if tool in found and found[tool]["status"] != "done":
                continue
            small, taken, status = _apply(TOOLS[tool], net, example, dead)
            if tool not in found:
                found[tool] = {"run": f"{model}/{kind}/{tool}", **base, "tool": tool, "status": status}
                if small is not None:
                    found[tool] |= {"version": tool_version(tool), **_outcome(small, inputs, outputs)}
            if small is not None:
                times.setdefault(tool, []).append(taken)
            if small is not None and tool == "paring":
                plain, taken, _ = _apply(unverified, net, example, dead)
                if plain is not None and _parameters(plain) == _parameters(small):
                    times.setdefault("unverified", []).append(taken)
    for tool in times.keys() & found.keys():
        seconds, cpu = (statistics.median(part) for part in zip(*times[tool], strict=True))
        found[tool] |= {"seconds": seconds, "cpu_seconds": cpu, "repeats": len(times[tool])}
    if "unverified" in times:
        found["paring"]["seconds_unverified"] = statistics.median(seconds for seconds, _ in times["unverified"])
    return [found[tool] for tool in tools]


def _apply(
    remove: Remove, net: nn.Module, example: Tensor, dead: Dead
) -> tuple[nn.Module | None, tuple[float, float], str]:
    """The small network (None if there is none), the seconds by the clock and of this thread, and "done" or why not."""
    own = copy.deepcopy(net)
    with lenient():
        started, cpu = time.perf_counter(), time.thread_time()
        try:
            small = remove(own, example, dead)
        except Missing as error:
            return None, (0.0, 0.0), f"not run: {error}"
        except Exception as error:  # whatever another library raises is its result here
            if remove in (TOOLS["paring"], TOOLS[FUSED], unverified):
                raise
            return None, (0.0, 0.0), f"fails: {type(error).__name__}: {_short(error)}"
        return small, (time.perf_counter() - started, time.thread_time() - cpu), "done"


def _outcome(small: nn.Module, inputs: Tensor, outputs: Tensor) -> dict[str, Any]:
    found: dict[str, Any] = {"parameters": _parameters(small)}
    try:
        with lenient(), torch.no_grad():
            differ = (small.eval()(inputs) - outputs).abs().max().item()
    except Exception as error:
        return {**found, "status": f"its network fails: {type(error).__name__}: {_short(error)}"}
    scale = max(1.0, outputs.abs().max().item())
    if differ != differ:
        return {**found, "status": "its network gives NaN"}
    return {**found, "error": differ, "exact": differ <= EXACT * scale}


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 100 else text[:99] + "…"


def _parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _line(row: dict[str, Any]) -> str:
    if "error" not in row:
        return f"{row['run']:<40}{row['status']}"
    seconds = f"{row['seconds']:9.3f} s" if "seconds" in row else ""
    if seconds and row["seconds"] > BUSY * row["cpu_seconds"]:
        seconds += f" (busy machine: {row['cpu_seconds']:.3f} s of CPU time)"
    return f"{row['run']:<40}error {row['error']:.1e}  {row['parameters']:>12,} of {row['dense_parameters']:,}{seconds}"
