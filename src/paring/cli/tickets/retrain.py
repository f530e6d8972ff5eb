"""One subnetwork trained in isolation: the weights of the rewind point under the mask that a search found.

    control = "ticket"    the weights of the rewind point, trained from that step on
              "reinit"    weights drawn anew, trained from the beginning: is the structure alone worth something?
              "shuffled"  the weights of the rewind point under a mask with the same number of open weights in every
                          layer, at random places: is it more than the layers' densities?

For iterative magnitude pruning that rewinds its weights, the ticket's training is the round that followed, bit for bit
unless something is drawn while training (random crops and flips, dropout).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from paring.cli.config import digest, plain
from paring.cli.experiment import RESULT, Experiment, working_in
from paring.cli.reading import read_result
from paring.cli.rounds import AGAIN, epochs, load_round, masks, removed, size
from paring.core import At, Places, gated_layers, gates, named_weight, settle_places
from paring.data import Dataset
from paring.gates import SigmoidGate
from paring.methods import Masked
from paring.run import Run
from paring.run.rewind_point import own_state
from paring.run.saved import after_cuts, check_fields, check_tensors
from paring.run.surgery.live_cut import put_back
from paring.train import CHECKPOINT, POINT, checkpoint, evaluate, fit, write_atomic

Control = Literal["ticket", "reinit", "shuffled"]
_OTHER = 10_007  # added to the seed of a reinitialised network
CONTROLS: tuple[Control, ...] = ("ticket", "reinit", "shuffled")


@dataclass(frozen=True)
class Retrain:
    """A training in isolation.

    Args:
        search: the finished experiment that found the mask.
        round: the round whose mask it is, from 1; of a method with one round 0, its final mask.
        control: what is trained under which mask, see above.
        at: which weights are masked; the search's own places.
    """

    search: Experiment
    round: int
    control: Control = "ticket"
    at: At = Places(("weights",))  # noqa: RUF009  # a frozen value

    def __post_init__(self) -> None:
        settle_places(self, "weights")

    @property
    def name(self) -> str:
        """Folder name."""
        return f"{self.search.model}-{self.search.data}-{self.control}-{digest(self)}"

    def result(self, root: Path) -> dict[str, Any] | None:
        """The finished result below `root`, or None.

        Raises:
            RunError: there is a result file, but it cannot be read.
        """
        return read_result(root / self.name / RESULT)

    def run(self, root: Path, *, progress: bool = True, data: Dataset | None = None) -> dict[str, Any]:
        """Train (or resume) and measure; a finished training is only read.

        Raises:
            Busy: another process works on this training.
            FileNotFoundError: the search's run folder is gone.
        """
        done = self.result(root)
        if done is not None:
            return done
        folder = root / self.name
        folder.mkdir(parents=True, exist_ok=True)
        with working_in(folder):
            write_atomic(folder / "config.json", json.dumps(plain(self), indent=2) + "\n")
            search = self.search
            data = data or search.dataset()
            row = self._row(root, folder, data, progress)
            write_atomic(folder / RESULT, json.dumps(row, indent=2) + "\n")
        return row

    def _row(self, root: Path, folder: Path, data: Dataset, progress: bool) -> dict[str, Any]:
        net, start, factor = self.network(root, data)
        recipe = self.search.recipe
        label = f"{self.search.model} {self.control} of round {self.round}, seed {recipe.seed}"
        method = Masked(at=self.at, factor=factor)
        fitted = fit(net, method, data, recipe, folder=folder, progress=progress, label=label, start=start)
        return {
            "model": self.search.model,
            "data": self.search.data,
            "method": self.search.label,
            "control": self.control,
            "round": self.round,
            "seed": recipe.seed,
            "rewind_step": start,
            "error": evaluate(fitted.net, data.test.to(torch.device(recipe.device)))[1],
            "validation_error": fitted.rows[-1].get("error"),
            **size(fitted.run),
            **removed(fitted.run, data),
            "epochs": epochs(fitted.rows),
            "train_seconds": round(fitted.seconds, 3),
            "source": "measured",
        }

    def network(self, root: Path, data: Dataset) -> tuple[nn.Module, int, float]:
        """The network to train, the optimizer step at which its training begins, and what the mask multiplies it with.

        Raises:
            FileNotFoundError: the search's run folder, or the round's network in it, is gone.
            CheckpointError: they are damaged, or of another network.
        """
        search, seed = self.search, self.search.recipe.seed
        folder = root / search.name
        found = search.attached(data)
        then = _rewind_point(found, folder)
        load_round(found, folder, self.round)
        point, start = then["point"], 0
        anew = self.control == "reinit"
        net = _initial(replace(search, recipe=replace(search.recipe, seed=_OTHER + seed)) if anew else search, data)
        if point is not None and not anew:
            start = search.method.point(found.clock) or 0
            state, kept = net.state_dict(), then["state"]["kept"]
            net.load_state_dict(
                {
                    name: put_back(point[name], w, kept.get(name, {})) if name in point else w
                    for name, w in state.items()
                }
            )
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer, mask in masks(found.net).items():
                mask = mask.cpu()
                if self.control == "shuffled":
                    mask = mask.flatten()[torch.randperm(mask.numel(), generator=draw)].view(mask.shape)
                weight = named_weight(net, layer)
                weight.mul_(mask)
                unlucky = mask.bool() & (weight == 0)  # `Masked` goes by zeros; this is none, and as good as one
                weight[unlucky] = torch.finfo(weight.dtype).tiny
        return net, start, next((gate.factor for _, _, gate in gates(found.net) if isinstance(gate, SigmoidGate)), 1.0)


def _rewind_point(run: Run, folder: Path) -> dict[str, Any]:
    """What a search left of its rewind point: "point", its tensors or None, and "state", which remembers the cuts.

    Raises:
        FileNotFoundError: it left nothing in this folder.
        CheckpointError: what it left is damaged, or of another network than the run's, which is freshly attached.
    """

    def check_point(state: dict[str, Any]) -> None:
        check_fields(state, ("point", "state"), "a rewind point")
        twin = after_cuts(state["state"], run.net, run.probe.example)
        check_tensors(state["point"], own_state(twin), "the rewind point")

    def check_last(state: dict[str, Any]) -> None:
        run.check_state(state.get("run"))

    kept = checkpoint.load(folder / POINT, check_point)
    if kept is not None:
        return kept[0]
    last = checkpoint.load(folder / CHECKPOINT, check_last)  # there is no rewind point, or one round
    if last is None:
        raise FileNotFoundError(f"the search's networks are not in {folder}: {AGAIN}")
    found: dict[str, Any] = last[0]["run"]
    return found


def _initial(search: Experiment, data: Dataset) -> nn.Module:
    """The network that a search begins with: masks whose weights never move replace them by constants while they attach."""
    net, own = search.network(data), search.attached(data).net
    with torch.no_grad():
        for path, layer in gated_layers(own):
            for leaf in layer.at_weights():
                name = f"{path}.{leaf}" if path else leaf
                weight, begun = net.get_parameter(name), own.get_parameter(name)
                weight.copy_(torch.where(begun != 0, begun, weight))
    return net
