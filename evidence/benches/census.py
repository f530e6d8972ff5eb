"""`python -m evidence bench census`: networks that people run, from the packages where they live, gated, cut and exported.

Random weights, small configurations, float64. Half of the units of every group that takes gates are closed, and removed. Each
architecture runs in a process of its own, so that its memory is its own and a crash is a row.
"""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

import paring as pr
from evidence.benches.book import Asked, Book
from evidence.benches.census_subjects import SUBJECTS
from evidence.benches.dead import randomise
from evidence.benches.tools import lenient
from evidence.benches.wild import Wild
from paring.core import Inputs, release
from paring.pruning import Magnitude, Search
from paring.pruning.gated import GatedCopy
from paring.removal import compact

LIMIT = 600  # seconds for one architecture
_LIMIT_OTHER = 30  # for what Torch-Pruning makes of it
_EXACT = {torch.float64: 1e-9, torch.float32: 1e-5}  # of the largest output, by the network's type
_BUDGET = 0.6  # of the parameters
_CLOSE = 0.02  # of the dense network: how far below a budget the outcome may lie
_PACKAGES = {"segmentation_models_pytorch": "segmentation-models-pytorch", "vit_pytorch.cvt": "vit-pytorch"}


def run(asked: Asked) -> Path:
    """Measure every architecture that the results file lacks."""
    book = Book(asked, "census")
    torch.set_num_threads(1)
    for name in SUBJECTS:
        if book.wants(name):
            row = {"run": name, "model": name, **_apart(name)}
            book.add(row)
            print(_line(row), flush=True)
    return book.close()


def _apart(name: str) -> dict[str, Any]:
    """The row, made in a process of its own; what Torch-Pruning makes of it comes after the rest, with a limit of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, theirs), daemon=True)
    process.start()
    theirs.close()
    found: dict[str, Any] = {"package": SUBJECTS[name].package, "status": f"not done in {LIMIT} s"}
    try:
        if ours.poll(LIMIT):
            found |= ours.recv()
            if found["status"] == "done":
                found["torch_pruning"] = ours.recv() if ours.poll(_LIMIT_OTHER) else f"not done in {_LIMIT_OTHER} s"
    except EOFError:
        process.join()
        found["status"] = f"its process ended with code {process.exitcode}"
    process.kill()
    process.join()
    return found


def _child(name: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    row, gated = measure(SUBJECTS[name])
    pipe.send(row)
    if gated is not None:
        pipe.send(_outcome(lambda: _torch_pruning(gated)))
    pipe.close()


def _outcome(look: Callable[[], str]) -> str:
    """What this says, or what it raised: whatever happens there is its result."""
    try:
        return look()
    except Exception as error:
        return f"{type(error).__name__}: {_short(error)}"


def measure(wild: Wild) -> tuple[dict[str, Any], GatedCopy | None]:
    """One row, and the gated network if it came so far. `status` is "done", or where it ended and why."""
    try:
        torch.manual_seed(0)
        net, example = wild.make()
    except Exception as error:  # a package that is missing, or that builds another way by now
        return {"status": f"not built: {_short(error)}"}, None
    randomise(net, generator := torch.Generator().manual_seed(0))
    _vary(net, generator)
    net, inputs = _doubled(net, example)
    row: dict[str, Any] = {"version": _version(wild.package), "dense_parameters": _parameters(net)}
    before, began = _memory(), time.process_time()
    try:
        gated = GatedCopy.of(net, inputs, "units")
        row |= {"captured": True, "groups": len(gated.wiring.groups), "gateable": len(gated.sites)}
        small, found = _halved(gated)
    except pr.CaptureError as error:
        return {**row, "captured": False, "status": f"not captured: {_short(error)}"}, None
    except Exception as error:
        kind = "no gates" if type(error) is ValueError and "gateable" not in row else f"crash: {type(error).__name__}"
        return {"captured": kind == "no gates", **row, "status": f"{kind}: {_short(error)}"}, None
    row |= {**found, "seconds": time.process_time() - began, "memory": _memory() - before}
    tried: dict[str, Callable[[], str]] = {
        "budget": lambda: _budget(net, inputs),
        "saved": lambda: _saved(small, net, inputs),
        "trains": lambda: _trains(small, inputs),
        "onnx": lambda: _onnx(small, inputs),
    }
    return {**row, **{name: _outcome(look) for name, look in tried.items()}, "status": "done"}, gated


@torch.no_grad()
def _vary(net: nn.Module, generator: torch.Generator) -> None:
    """Parameters that are one number all over by initialisation, such as scales of layers: half to one and a half of it, or noise."""
    for parameter in net.parameters():
        first = parameter.flatten()[0]
        if parameter.numel() > 1 and bool((parameter == first).all()):
            noise = torch.rand(parameter.shape, generator=generator)
            parameter.copy_(first * (0.5 + noise) if first else 0.2 * (noise - 0.5))


def _doubled(net: nn.Module, example: Any) -> tuple[nn.Module, Inputs]:
    """In float64 and eval mode; in float32 if that is written into the network, so that it does not run otherwise."""
    net, inputs = net.eval(), Inputs.of(example)
    double = copy.deepcopy(net).double()
    wide = inputs.map(lambda value: value.double() if value.is_floating_point() else value)
    try:
        _call(double, wide)
    except RuntimeError:
        return net, inputs
    return double, wide


def _halved(gated: GatedCopy) -> tuple[nn.Module, dict[str, Any]]:
    """The network without the smaller half of every group and what is dead as it is, and how that went; the gated one has them closed."""
    halves = [_larger_half(part) for part in Magnitude().look(gated, [], _square).split(gated.sizes)]
    mask = torch.cat(halves) & gated.begin
    gated.set(mask)
    asked = gated.shares(mask)["parameters"]
    closed = copy.deepcopy(gated.net)
    release(closed)
    small, report = compact(closed, gated.example)
    left = _parameters(small) / _parameters(closed)
    differ, scale = _differ(_call(gated.net, gated.example), _call(small, gated.example))
    return small, {
        "possible": 1 - asked,
        "removed": 1 - left,
        "error": differ,
        "scale": scale,
        "exact": differ <= _EXACT[_dtype(small)] * max(scale, 1.0),
        "dtype": str(_dtype(small)).removeprefix("torch."),
        "form": report.form,
        "kept": sorted({reason for one in report.rows for reason in one.kept}),
        "rolled_back": len(report.rolled_back),
    }


def _larger_half(norms: Tensor) -> Tensor:
    stays = torch.ones(len(norms), dtype=torch.bool)
    stays[norms.argsort()[: len(norms) // 2]] = False
    return stays


def _budget(net: nn.Module, inputs: Inputs) -> str:
    """What `pr.prune` says to a share of the parameters: the share it got, or why it cannot be."""
    try:
        small, _ = pr.prune(
            net,
            [inputs],
            _square,
            to=pr.Budget(params=_BUDGET),
            epochs=0,
            search=Search(importance=Magnitude(), rounds=1, batches=1, repair=False),
        )
    except ValueError as error:
        return f"refused: {_short(error)}"
    left = _parameters(small) / _parameters(net)
    return "met" if _BUDGET - _CLOSE <= left <= _BUDGET else f"missed: {left:.3f}"


def _square(net: nn.Module, inputs: Inputs) -> Tensor:
    return sum((out.square().mean() for out in _tensors(net(*inputs.args, **inputs.kwargs))), torch.zeros(()))


def _saved(small: nn.Module, net: nn.Module, inputs: Inputs) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.pare"
        pr.pack(small, path)
        again = pr.unpack(copy.deepcopy(net), path).eval()
    differ, _ = _differ(_call(small, inputs), _call(again, inputs))
    return "same" if differ == 0 else f"differs by {differ:.1e}"


def _trains(small: nn.Module, inputs: Inputs) -> str:
    net = copy.deepcopy(small).train()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    _square(net, inputs).backward()
    optimizer.step()
    moved = sum(bool((p != old).any()) for p, old in zip(net.parameters(), before, strict=True))
    finite = all(bool(p.isfinite().all()) for p in net.parameters())
    return "steps" if moved and finite else "does not move" if finite else "not finite"


def _onnx(small: nn.Module, inputs: Inputs) -> str:
    net = copy.deepcopy(small).float()
    args, kwargs = _pytree.tree_map(
        lambda v: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v,
        (inputs.args, dict(inputs.kwargs)),
    )
    with tempfile.TemporaryDirectory() as folder:
        pr.to_onnx(net, kwargs or args, Path(folder) / "small.onnx")
    return "agrees"


def _torch_pruning(gated: GatedCopy) -> str:
    """The same dead units, cut by Torch-Pruning, group by group; heads only as rows, since it cannot know of heads."""
    tp = importlib.import_module("torch_pruning")
    net, inputs = copy.deepcopy(gated.net), gated.example
    release(net)
    before = _call(net, inputs)
    whole = _parameters(net)
    with lenient():
        graph = tp.DependencyGraph().build_dependency(
            net,
            example_inputs=inputs,
            forward_fn=lambda net, inputs: net(*inputs.args, **inputs.kwargs),
            output_transform=lambda out: _tensors(out)[0],
        )
        modules = dict(net.named_modules())
        for number, gate in enumerate(gated.gates):
            for name, entries in gated.entries(number).items():
                layer = modules.get(name)
                if layer is None:
                    continue
                prune = graph.get_pruner_of_module(layer).prune_out_channels
                dead = [
                    row for row, entry in enumerate(entries.tolist()) if entry >= 0 and not gate.mask.flatten()[entry]
                ]
                if dead and max(dead) < layer.weight.shape[0]:
                    graph.get_pruning_group(layer, prune, idxs=dead).prune()
                break
        try:
            after = _call(net, inputs)
        except Exception as error:
            return f"does not run: {type(error).__name__}"
    differ, scale = _differ(before, after)
    right = differ <= _EXACT[_dtype(net)] * max(scale, 1.0)
    return f"{'right' if right else f'wrong by {differ:.2g}'}, {1 - _parameters(net) / whole:.1%} removed"


@torch.no_grad()
def _call(net: nn.Module, inputs: Inputs) -> list[Tensor]:
    torch.manual_seed(0)
    return [out.clone() for out in _tensors(net.eval()(*inputs.args, **inputs.kwargs))]


def _tensors(out: Any) -> list[Tensor]:
    return [part for part in _pytree.tree_leaves(out) if isinstance(part, Tensor) and part.is_floating_point()]


def _differ(before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    """The largest difference, infinite if something is missing, and the largest output."""
    scale = max((float(out.abs().max()) for out in before if out.numel()), default=0.0)
    if [out.shape for out in before] != [out.shape for out in after]:
        return float("inf"), scale
    gaps = [float((a - b).abs().max()) for a, b in zip(before, after, strict=True) if a.numel()]
    return max(gaps, default=0.0), scale


def _memory() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _dtype(net: nn.Module) -> torch.dtype:
    return next(p.dtype for p in net.parameters() if p.is_floating_point())


def _parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _version(package: str) -> str:
    try:
        return version(_PACKAGES.get(package, package.replace("_", "-")))
    except PackageNotFoundError:
        return ""


def _short(error: Exception) -> str:
    text = " ".join(str(error).replace(tempfile.gettempdir(), "").split())
    return text if len(text) <= 200 else text[:199] + "…"


def _line(row: dict[str, Any]) -> str:
    if row["status"] != "done":
        return f"{row['run']:<36}{row['status']}"
    share = f"{row['removed']:.1%} of {row['possible']:.1%}"
    told = f"{'exact' if row['exact'] else 'NOT EXACT'} {row['error']:.1e}, removed {share}, {row['form']}"
    others = ", ".join(f"{name} {row[name]}" for name in ("budget", "saved", "trains", "onnx", "torch_pruning"))
    return f"{row['run']:<36}{row['gateable']}/{row['groups']} groups, {told}, {others}, {row['seconds']:.0f} s"
