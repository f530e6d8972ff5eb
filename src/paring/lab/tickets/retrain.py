"""One subnetwork trained in isolation: the weights of the rewind point under the mask that a search found.

    control = "ticket"    the weights of the rewind point, trained from that step on
              "reinit"    weights drawn anew, trained from the beginning: is the structure alone worth something?
              "shuffled"  the weights of the rewind point under a mask with the same number of open weights in every
                          layer, at random places: is it more than the layers' densities?

For iterative magnitude pruning that rewinds its weights, the ticket's training is the round that followed, bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.core import Clock
from paring.data import Dataset
from paring.handle import attach
from paring.lab.config import digest, plain
from paring.lab.experiment import RESULT, Experiment, read_result, working_in
from paring.lab.rounds import masks, size
from paring.methods import Masked
from paring.train import CHECKPOINT, ROUND, checkpoint, evaluate, fit, write_atomic

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
    at: str | tuple[str, ...] = "weights"

    @property
    def name(self) -> str:
        """Folder name."""
        return f"{self.search.model}-{self.search.data}-{self.control}-{digest(self)}"

    def result(self, root: Path) -> dict[str, Any] | None:
        """The finished result below `root`, or None.

        Raises:
            ValueError: there is a result file, but it cannot be read.
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
        net, start = self.network(root, data)
        recipe = self.search.recipe
        label = f"{self.search.model} {self.control} of round {self.round}, seed {recipe.seed}"
        fitted = fit(net, Masked(at=self.at), data, recipe, folder=folder, progress=progress, label=label, start=start)
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
            "epochs": len([row for row in fitted.rows if "epoch" in row]),
            "train_seconds": round(fitted.seconds, 3),
            "source": "measured",
        }

    def network(self, root: Path, data: Dataset) -> tuple[nn.Module, int]:
        """The network to train and the optimizer step at which its training begins.

        Raises:
            FileNotFoundError: the search's run folder, or the round's network in it, is gone.
        """
        found, point, start = self._found(root, data)
        search, seed = self.search, self.search.recipe.seed
        net = search.network(data)
        draw = torch.Generator().manual_seed(seed)
        if self.control == "reinit":
            net, start = replace(search, recipe=replace(search.recipe, seed=_OTHER + seed)).network(data), 0
        elif point is not None:
            state = net.state_dict()
            net.load_state_dict({name: point.get(name, value) for name, value in state.items()})
        with torch.no_grad():
            for layer, mask in found.items():
                if self.control == "shuffled":
                    mask = mask.flatten()[torch.randperm(mask.numel(), generator=draw)].view(mask.shape)
                weight = net.get_submodule(layer).weight
                assert isinstance(weight, Tensor)
                weight.mul_(mask)
                unlucky = mask.bool() & (weight == 0)  # `Masked` goes by zeros; this is none, and as good as one
                weight[unlucky] = torch.finfo(weight.dtype).tiny
        return net, start

    def _found(self, root: Path, data: Dataset) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, int]:
        """Masks by layer, the weights of the rewind point (None: the initialisation), and its step."""
        search = self.search
        folder = root / search.name
        last = checkpoint.load(folder / CHECKPOINT)
        kept = checkpoint.load(folder / ROUND.format(self.round))
        if last is None or kept is None:
            raise FileNotFoundError(
                f"the search's networks are not in {folder}; run it again (its result.json has to go first)"
            )
        net, steps = _attached(search, data), last[0]["run"]["step"]
        net.load_state_dict(kept[0]["net"])
        found = masks(net)
        point = last[0]["run"]["point"]
        clock = Clock(steps=steps, epoch_steps=search.epoch_steps(data))
        step = search.method.point(clock) if point is not None else 0
        return {layer: mask.cpu() for layer, mask in found.items()}, point, step or 0


def _attached(search: Experiment, data: Dataset) -> nn.Module:
    """The network of a search with its gates as they are before training; random states stay as they were."""
    net, epoch_steps = search.network(data), search.epoch_steps(data)
    x, y = data.train.x[:32], data.train.y[:32]
    with torch.random.fork_rng(devices=[]):
        attach(
            net,
            search.method,
            x[:2],
            steps=search.recipe.epochs * epoch_steps,
            epoch_steps=epoch_steps,
            loss=lambda twin: F.cross_entropy(twin(x), y),
        )
    return net
