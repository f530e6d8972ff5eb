"""The demo: a dense network and the same one with L0 unit gates on real digits, side by side, and the proof."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paring.cli.experiment import SMALL, outputs_differ
from paring.cli.human import speed_up
from paring.cli.page import run_page
from paring.cost import compare, latency, measure, report
from paring.data import Dataset
from paring.data import load as load_data
from paring.files import load, save
from paring.methods import L0, Budget, Dense
from paring.models import build
from paring.train import Fit, Recipe, evaluate, fit, write_atomic

MODEL, DATA = "lenet_300_100", "digits"
METHOD = L0(price=Budget(params=0.15), at="units", keep=0.8, hold=0.4)
RECIPE = Recipe(epochs=60, batch=100, lr=2e-3, optimizer="adamw", weight_decay=0.2, schedule="cosine", ema=0.99)
TOLERANCE = 1e-5

_FIGURES = (
    ("test error", "error", "{:.2f} %"),
    ("parameters", "parameters", "{:,}"),
    ("MACs", "macs", "{:,}"),
    ("nonzeros", "nonzeros", "{:,}"),
    ("bytes on disk", "bytes", "{:,}"),
    ("latency, batch 1", "latency_ms", "{:.3f} ms"),
    ("latency, batch 128", "latency_128_ms", "{:.3f} ms"),
    ("training time", "train_seconds", "{:.1f} s"),
)


def build_small(seed: int, data: Dataset) -> nn.Module:
    """The demo's network at full size, initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(MODEL, shape=data.shape, classes=data.classes)


def run(out: Path, seed: int, *, progress: bool = True) -> dict[str, Any]:
    """Train both, shrink, compare, prove; writes everything below `out` and returns the result.

    Raises:
        RuntimeError: the saved small network does not compute what the gated one did.
    """
    out.mkdir(parents=True, exist_ok=True)
    data = load_data(DATA)
    recipe = Recipe(**{**vars(RECIPE), "seed": seed})
    plain = fit(build_small(seed, data), Dense(), data, recipe, progress=progress, label="dense")
    gated = fit(build_small(seed, data), METHOD, data, recipe, progress=progress, label="L0 unit gates")
    small = gated.run.finish()
    save(small, out / SMALL)
    save(plain.net, out / "dense.safetensors")
    again = load(lambda: build_small(seed, data), out / SMALL)
    differ = outputs_differ(again, gated.net, data.test.x)
    result: dict[str, Any] = {
        "model": MODEL,
        "data": DATA,
        "shape": list(data.shape),
        "classes": data.classes,
        "seed": seed,
        "method": repr(METHOD),
        "dense_parameters": int(float(gated.run.cost().parameters)),
        "dense_macs": int(float(gated.run.cost().macs)),
        "dense": _figures(plain.net, out / "dense.safetensors", plain, data),
        "small": _figures(again, out / SMALL, gated, data),
        "max_abs_diff": differ,
        "tolerance": TOLERANCE,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for batch, key in ((1, "latency_ms"), (128, "latency_128_ms")):
        timed = latency({"dense": plain.net, "small": again}, data.test.x[:batch], batch=batch)
        for name in ("dense", "small"):
            result[name][key] = 1e3 * timed[name].median_s
        result[f"speed_{key}"] = speed_up(compare(timed["dense"], timed["small"]))
    write_atomic(out / "result.json", json.dumps(result, indent=2) + "\n")
    write_atomic(out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in gated.rows))
    layers = report(again, data.test.x[:2])
    write_atomic(
        out / "report.html", run_page("paring demo: digits, dense against small", result, gated.rows, layers.rows)
    )
    if not differ <= TOLERANCE:
        raise RuntimeError(
            f"the small network read back from {out / SMALL} differs from the gated one by {differ:.1e}, more than {TOLERANCE}; this is a bug"
        )
    return result


def _figures(net: nn.Module, file: Path, fitted: Fit, data: Dataset) -> dict[str, Any]:
    cost = measure(net, data.test.x[:1])
    return {
        "error": evaluate(net, data.test)[1],
        "parameters": cost.parameters,
        "macs": cost.macs,
        "nonzeros": cost.nonzeros,
        "bytes": file.stat().st_size,
        "train_seconds": fitted.seconds,
    }


def main(out: Path, seed: int) -> int:
    """Run the demo and print the comparison."""
    print(
        "paring demo: training LeNet-300-100 on scikit-learn's digits twice, dense and with L0 unit gates", flush=True
    )
    result = run(out, seed)
    print(f"\n{'':<20}{'dense':>14}{'small':>14}")
    for label, key, form in _FIGURES:
        print(f"{label:<20}{form.format(result['dense'][key]):>14}{form.format(result['small'][key]):>14}")
    share = result["small"]["parameters"] / result["dense"]["parameters"]
    print(f"\nthe small network has {share:.1%} of the parameters")
    for batch, key in ((1, "latency_ms"), (128, "latency_128_ms")):
        print(f"speed at batch {batch}, one thread: {result[f'speed_{key}']['text']}")
    print(
        f"proof: read back from disk, it differs from the gated network by at most {result['max_abs_diff']:.1e} (allowed: {TOLERANCE:.0e})"
    )
    print(f"written to {out}: {SMALL}, result.json, report.html")
    return 0
