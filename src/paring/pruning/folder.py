"""What a call of `prune` keeps on disk: what it was asked, each choice, and a checkpoint of each epoch."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from paring.core import bare_state
from paring.pruning.gated import GatedCopy
from paring.pruning.knapsack import Choice
from paring.pruning.randomness import random_state, set_random_state
from paring.pruning.tune import load_versioned
from paring.train import checkpoint
from paring.train.checkpoint import CheckpointError

_SAME = 1e-3  # of a loss: other threads and devices add up in another order
_BAD = (KeyError, ValueError, TypeError, RuntimeError, AttributeError)


class Folder:
    """A folder of one call; the same call goes on from what is in it, bit for bit.

    Args:
        path: made if it is not there.
        net: the network that is pruned.
        asked: texts that say what was asked.
        optimizer: that trains; None where nothing does.

    Raises:
        CheckpointError: it belongs to another call, or is damaged.
    """

    def __init__(self, path: Path, net: nn.Module, asked: tuple[str, ...], optimizer: Optimizer | None = None) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"{path} is a file: name a folder")
        path.mkdir(parents=True, exist_ok=True)
        self._call: dict[str, Any] = {"asked": list(asked), "net": _digest(net), "optimizer": _settings(optimizer)}
        found = checkpoint.load(path / "call.pt")
        if found is None:
            self._call["random"] = random_state()
            checkpoint.save(path / "call.pt", self._call)
            return
        stored = found[0]
        if stored.get("asked") != self._call["asked"]:
            raise self._other(f"prune({', '.join(stored.get('asked', []))})")
        if stored.get("net") != self._call["net"]:
            raise self._other("another network")
        if stored.get("optimizer", self._call["optimizer"]) != self._call["optimizer"]:
            raise self._other(f"another optimizer, {stored['optimizer']}")
        _restore(stored, path)
        self._call = stored

    def _other(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} belongs to {what}: name another folder, or remove it to begin anew")

    def judge(self, loss: float) -> None:
        """Refuse to go on with another loss or other data. loss: of the network as given, on the first batch.

        Raises:
            CheckpointError: it was another one.
        """
        before = self._call.get("loss")
        if not math.isfinite(loss):  # refused in a moment
            return
        if before is None:
            self._call["loss"] = loss
            checkpoint.save(self.path / "call.pt", self._call)
        elif not math.isclose(loss, before, rel_tol=_SAME, abs_tol=1e-6):
            raise self._other(
                f"another loss or other data: the loss on the first batch was {before:.6g}, and is {loss:.6g}"
            )

    def choice(self, number: int, gated: GatedCopy) -> tuple[Choice, float] | None:
        """The choice for this budget and the seconds it took, with the gated network as it was left; None: not there yet."""
        file = self.path / f"choice-{number}.pt"
        found = checkpoint.load(file)
        if found is None:
            return None
        try:
            stored = found[0]
            load_versioned(gated.net, stored["net"])
            path = tuple((a, b) for a, b in stored["path"])
            choice = Choice(stored["mask"], dict(stored["shares"]), path, dict(stored["predicted"]))
            gated.set(choice.mask)
            seconds = float(stored["seconds"])
        except _BAD as error:
            raise CheckpointError(f"{file} does not fit this network ({error}): name another folder") from error
        _restore(stored, file)
        return choice, seconds

    def keep(self, number: int, choice: Choice, gated: GatedCopy, seconds: float) -> None:
        """Keep the choice for this budget, and how long it took."""
        state: dict[str, Any] = {
            "mask": choice.mask,
            "shares": choice.shares,
            "path": [list(pair) for pair in choice.path],
            "net": dict(gated.net.state_dict()),
            "predicted": dict(choice.predicted),
            "seconds": seconds,
            "random": random_state(),
        }
        checkpoint.save(self.path / f"choice-{number}.pt", state)

    def training(self, number: int) -> Path:
        """Where the checkpoint of the training for this budget lies."""
        return self.path / f"training-{number}.pt"


def _restore(stored: dict[str, Any], where: Path) -> None:
    try:
        set_random_state(stored["random"])
    except _BAD as error:
        raise CheckpointError(f"{where} holds no random state ({error}): name another folder") from error


def _settings(optimizer: Optimizer | None) -> str:
    """An optimizer's class and the numbers of its groups."""
    if optimizer is None:
        return ""
    groups = [
        {name: one for name, one in group.items() if one is None or isinstance(one, int | float | str | tuple)}
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__name__} with {groups[0] if len(groups) == 1 else groups}"


def _digest(net: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of the network's tensors."""
    found = hashlib.sha256()
    for name, tensor in bare_state(net).items():
        if isinstance(tensor, torch.Tensor):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
