"""What each round of a method with several left behind, measured from the networks that `fit` kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paring.core import bare_state, gates
from paring.core.plain_json import shown
from paring.cost import measure
from paring.data import Dataset
from paring.gates import support
from paring.run import Run
from paring.run.saved import after_cuts, check_fields, check_tensors
from paring.train import ROUND, Fit, checkpoint, evaluate, round_state

AGAIN = "run it again in another folder (paring ... --runs FOLDER), where nothing of it is yet"


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


def removed(run: Run, data: Dataset) -> dict[str, Any]:
    """Size of the network of a run after removal; the run itself stays as it is."""
    before = run.report
    real = measure(run.finish(early=True), data.test.x[:1].to(next(run.net.parameters()).device))
    run.report = before
    return {"parameters": int(real.parameters), "nonzeros": real.nonzeros, "macs": real.macs}


@contextmanager
def decided(run: Run) -> Iterator[nn.Module]:
    """Within this context the network is what `finish` would make of it before anything is removed, in eval mode."""
    net = run.net
    before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in bare_state(net).items()}
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
            checkpoint.save(folder / ROUND.format(number), round_state(net, number))
        return size(run)


def load_round(run: Run, folder: Path, number: int) -> None:
    """Make the network of a run, freshly attached or left by an earlier round, the one that this round left in `folder`.

    Raises:
        FileNotFoundError: it is gone.
        CheckpointError: it is damaged, or of another network.
    """

    def check(state: dict[str, Any]) -> None:
        check_fields(state, ("round", "net", "state"), "the network of a round")
        if state["round"] != number:
            raise ValueError(f"it is that of round {shown(state['round'])}, not of round {number}")
        twin = after_cuts(state["state"], run.net, run.probe.example)
        check_tensors(state["net"], bare_state(twin), "the network of a round")

    kept = checkpoint.load(folder / ROUND.format(number), check)
    if kept is None:
        raise FileNotFoundError(f"{folder / ROUND.format(number)} is gone, the network of round {number}: {AGAIN}")
    run.cut_like(kept[0]["state"])
    run.net.load_state_dict(kept[0]["net"])


def rounds(fitted: Fit, folder: Path, data: Dataset, fresh: Callable[[], Run]) -> list[dict[str, Any]]:
    """One record per round: whether it left a ticket, error on the test set, density, layers, and the epochs and seconds until it was over.

    Args:
        fitted: a finished training of a method with several rounds.
        folder: where `fit` kept the networks of the rounds.
        data: on the network's device.
        fresh: attaches the method to a new network on that device: earlier rounds may have left larger ones than the last.
    """
    earlier, found = fresh(), []
    earlier.net.eval()
    for number in range(fitted.run.method.rounds - 1):
        load_round(earlier, folder, number)
        found.append(_record(earlier, fitted, number, data))
    with decided(fitted.run):
        found.append(_record(fitted.run, fitted, fitted.run.method.rounds - 1, data))
    return found


def _record(run: Run, fitted: Fit, number: int, data: Dataset) -> dict[str, Any]:
    rows = [row for row in fitted.rows if row.get("round", -1) <= number and "epoch" in row]
    ticket = number in run.method.tickets
    return {
        "round": number,
        "ticket": ticket,
        **size(run),
        **(removed(run, data) if ticket else {}),
        "error": evaluate(run.net, data.test)[1],
        "validation_error": rows[-1].get("error"),
        "epochs": epochs(rows),
        "train_seconds": round(rows[-1]["seconds"], 3),
    }


def epochs(rows: Iterable[Mapping[str, Any]]) -> float:
    """Passes over the data that these rows of a record stand for; what began in the middle of one counts for its part."""
    total = sum(row.get("part", 1) for row in rows if "epoch" in row)
    return int(total) if total == int(total) else round(total, 6)


def masks(net: nn.Module) -> dict[str, Tensor]:
    """What is open now, by layer, for every gate on weights, of the sizes before anything was cut."""
    return {name: gate.whole(gate.support()) for name, kind, gate in gates(net) if kind == "weights"}
