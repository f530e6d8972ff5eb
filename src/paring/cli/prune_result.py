"""What `paring prune` leaves: one small network for each budget, and all numbers as JSON."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paring.cli.experiment import RESULT, SMALL
from paring.cli.human import DASH, count, seconds, share, size
from paring.cli.job import Job
from paring.cli.reading import RunError, read_result
from paring.core import Example
from paring.core.plain_json import is_number, shown
from paring.core.printable import printable, printable_lines
from paring.cost import measure
from paring.files import save
from paring.methods import Budget
from paring.methods.budget import SIZES
from paring.pruning import Pruned

METHOD = "prune"
_NUMBERS = ("loss", "metric", "macs", "parameters", "bytes", "search_seconds", "train_seconds")


@dataclass(frozen=True)
class Made:
    """A small network, what was done, and the file it goes to."""

    net: nn.Module
    pruned: Pruned
    file: str


def size_of(budget: Budget) -> str:
    """A budget in words: "macs 0.5, params 0.3"."""
    named = {name: getattr(budget, name) for name in ("macs", *SIZES)}
    return ", ".join(f"{name} {value:g}" for name, value in named.items() if value is not None)


def file_of(budget: Budget, among: int) -> str:
    """Name of the file: `small.safetensors`, or one for each budget where there are several."""
    return SMALL if among == 1 else f"small-{size_of(budget).replace(', ', '-').replace(' ', '')}.safetensors"


def result_row(
    job: Job, example: Example, made: Sequence[Made], folder: Path, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Save the small networks, and say everything that is known of them.

    Args:
        job: what was pruned.
        example: what the network takes.
        made: the small networks, the largest first.
        folder: where they go.
        known: entries that the row begins with.
    """
    dense, look = measure(job.net, example), made[0].pruned.looks[0]
    row: dict[str, Any] = {
        **known,
        "model": job.model,
        "data": job.data,
        "method": METHOD,
        **({"shape": list(job.shape), "classes": job.classes} if job.shape is not None else {}),
        "dense": {
            "loss": look.loss,
            "metric": look.metric,
            "parameters": dense.parameters,
            "macs": dense.macs,
            "bytes": dense.bytes,
            "layers": [_layer(one) for one in dense.rows],
        },
        "dense_parameters": dense.parameters,
        "dense_macs": dense.macs,
        "networks": [_network(one, example, folder) for one in made],
    }
    last, pruned = row["networks"][-1], made[-1].pruned
    row |= {"parameters": last["parameters"], "macs": last["macs"], "bytes": last["file_bytes"]}
    row["train_seconds"] = round(sum(one["train_seconds"] for one in row["networks"]), 3)
    row["widths"] = {_joined(one.layers): [one.before, one.after] for one in pruned.rows}
    row["notes"] = [*job.said, *dict.fromkeys(note for one in row["networks"] for note in one["notes"])]
    row |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "source": "measured"}
    found: dict[str, Any] = _finite(row)
    return found


def _network(made: Made, example: Example, folder: Path) -> dict[str, Any]:
    save(made.net, folder / made.file)
    told, real = made.pruned.to_dict(), measure(made.net, example)
    _, cut, end = made.pruned.looks
    return {
        "size": size_of(made.pruned.budget),
        "file": made.file,
        "loss": end.loss,
        "metric": end.metric,
        "cut_loss": cut.loss,
        "cut_metric": cut.metric,
        "parameters": real.parameters,
        "macs": real.macs,
        "bytes": real.bytes,
        "file_bytes": (folder / made.file).stat().st_size,
        "losses": list(made.pruned.training.losses),
        "layers": [_layer(one) for one in real.rows],
        **{
            name: told[name]
            for name in ("shares", "groups", "search_seconds", "train_seconds", "steps", "path", "notes")
        },
    }


def _layer(row: Any) -> dict[str, Any]:
    return {"name": row.name, "kind": row.kind, "units": row.units, "parameters": row.parameters, "macs": row.macs}


def _joined(layers: Sequence[str]) -> str:
    return ", ".join(layers)


def _finite(value: Any) -> Any:
    """The same without numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_pruned(folder: Path) -> dict[str, Any] | None:
    """The result in this folder; None when there is none.

    Raises:
        RunError: there is a file, but no result of `paring prune` in it.
    """
    row = read_result(folder / RESULT)
    if row is None:
        return None
    networks = row.get("networks")
    dense = row.get("dense")
    whole = isinstance(networks, list) and networks and all(isinstance(one, dict) for one in networks)
    if row.get("method") != METHOD or not whole or not isinstance(dense, dict):
        raise RunError(f"{folder / RESULT} holds no result of paring prune")
    assert isinstance(networks, list)
    for one in (dense, *networks):
        for name in _NUMBERS:
            if one.get(name) is not None and not is_number(one[name]):
                raise RunError(f"{folder / RESULT} holds no result of paring prune: '{name}' is {shown(one[name])}")
    return row


def summary(row: Mapping[str, Any], folder: Path) -> str:
    """The result in words: the dense network and the small ones, what was said, and the command that comes next."""
    dense, networks = row["dense"], row["networks"]
    heads = [
        "",
        "loss",
        *(["metric"] if dense.get("metric") is not None else []),
        "MACs",
        "parameters",
        "bytes",
        "time",
    ]
    lines = [heads, _line("dense", dense, dense, heads)]
    lines += [_line(printable(one.get("size", DASH)), one, dense, heads) for one in networks]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        f"{printable(row['model'])}, {printable(row['data'])}: {len(networks)} smaller {'network' if len(networks) == 1 else 'networks'}"
    ]
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        text.append("  " + "  ".join(cells).rstrip())
    notes = row.get("notes")
    text += [
        f"  note: {printable(note)}" for note in (notes if isinstance(notes, list) else []) if isinstance(note, str)
    ]
    where = shlex.quote(str(folder))
    text.append("next:")
    text.append(f"  {folder / 'report.html'}     every group and layer, the curve, and why")
    for one in networks:
        if isinstance(file := one.get("file"), str):
            text.append(f"  pr.load(net, {json.dumps(str(folder / file))})     in Python, net as in the job")
    if len(networks) == 1:
        text.append(f"  paring pack {where} --out net.pare     a smaller file")
    return printable_lines("\n".join(text))


def _line(name: str, one: Mapping[str, Any], dense: Mapping[str, Any], heads: Sequence[str]) -> list[str]:
    def of(key: str) -> str:
        part = f" ({share(one[key] / dense[key])})" if one is not dense and one.get(key) and dense.get(key) else ""
        return count(one.get(key)) + part

    search, train = one.get("search_seconds"), one.get("train_seconds")
    cells = [name, number(one.get("loss"))]
    cells += [number(one.get("metric"))] if "metric" in heads else []
    time = "" if search is None or train is None else seconds(search + train)
    return [*cells, of("macs"), of("parameters"), size(one.get("bytes")), time]


def number(value: float | None) -> str:
    """A loss or a metric in four digits."""
    return DASH if value is None else f"{value:.4g}"
