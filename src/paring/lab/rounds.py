"""What each round of a method with several left behind, measured from the networks that `fit` kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paring.core import gates
from paring.data import Dataset
from paring.gates import support
from paring.handle import Run
from paring.train import ROUND, Fit, checkpoint, evaluate


def size(run: Run) -> dict[str, Any]:
    """What the gates of a network leave, every zero skipped: in all, and layer by layer.

    `weight_density` is the share of the weights that is open, as papers count it, `live_density` that without weights of
    units that compute nothing or that nobody reads; `mac_density` and the layers' numbers are of the latter.
    """
    dense = run.cost()
    with torch.no_grad():
        opened, kept = run.cost(support, dead=True), run.cost(support)
    return {
        "weight_density": float(opened.weights) / float(dense.weights),
        "live_density": float(kept.weights) / float(dense.weights),
        "mac_density": float(kept.macs) / float(dense.macs),
        "layers": {
            row.name: {"density": float(row.weights) / float(full.weights), "macs": float(row.macs)}
            for row, full in zip(kept.rows, dense.rows, strict=True)
            if row.kind in ("linear", "conv", "embedding")
        },
    }


@contextmanager
def decided(run: Run) -> Iterator[nn.Module]:
    """Within this context the network is what `finish` would make of it before anything is removed, in eval mode."""
    net = run.net
    before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in net.state_dict().items()}
    try:
        run.method.finish(net.eval())
        yield net
    finally:
        net.load_state_dict(before)


def keep_decided(run: Run, folder: Path) -> dict[str, Any]:
    """`size` of the decided network; where it has gates on weights it is kept in `folder`, as the last round's."""
    with decided(run) as net:
        if masks(net):
            number = run.method.rounds - 1
            checkpoint.save(folder / ROUND.format(number), {"round": number, "net": net.state_dict()})
        return size(run)


def rounds(fitted: Fit, folder: Path, data: Dataset) -> list[dict[str, Any]]:
    """One record per round: whether it left a ticket, error on the test set, density, layers, and the epochs and seconds until it was over.

    Args:
        fitted: a finished training of a method with several rounds.
        folder: where `fit` kept the networks of the rounds.
        data: on the network's device.
    """
    run, found = fitted.run, []
    with decided(run) as net:
        for number in reversed(range(run.method.rounds)):
            rows = [row for row in fitted.rows if row.get("round", -1) <= number and "epoch" in row]
            if number + 1 < run.method.rounds:
                kept = checkpoint.load(folder / ROUND.format(number))
                if kept is None:
                    raise FileNotFoundError(f"{folder / ROUND.format(number)} is gone; delete {folder} to train again")
                net.load_state_dict(kept[0]["net"])
            record = {
                "round": number,
                "ticket": number in run.method.tickets,
                **size(run),
                "error": evaluate(net, data.test)[1],
                "validation_error": rows[-1].get("error"),
                "epochs": len(rows),
                "train_seconds": round(rows[-1]["seconds"], 3),
            }
            found.append(record)
    return found[::-1]


def masks(net: nn.Module) -> dict[str, Tensor]:
    """What is open now, by layer, for every gate on weights."""
    return {name: gate.support() for name, kind, gate in gates(net) if kind == "weights"}
