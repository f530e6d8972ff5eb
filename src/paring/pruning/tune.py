"""Training a plain network on anyone's batches: what `prune` fine-tunes with.

One loop: the loss of the user, a learning rate that warms up and falls as a cosine, the teacher's term if there is one, and a
checkpoint after each epoch, from which a run that was stopped goes on bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from paring.core import Progress, Watch, validate
from paring.core.default_loss import Loss, count, one_pass, scalar
from paring.pruning.norms import has_batch_norm
from paring.pruning.randomness import random_state, set_random_state
from paring.train import checkpoint
from paring.train.guard import Diverged

Optimize = Callable[[list[nn.Parameter]], Optimizer]
"""From the parameters that train to an optimizer; its learning rates are the highest ones."""

_CNN_RATE, _RATE = 0.05, 1e-3


class Adding(Protocol):
    """A further term of the loss, such as a teacher's."""

    def listening(self, net: nn.Module) -> AbstractContextManager[None]:
        """While this is on, what the network is called with and answers is noted."""
        ...

    def mix(self, loss: Tensor, done: float) -> Tensor:
        """The loss, with the term of what was noted last. done: share of the training that is over."""
        ...


@dataclass(frozen=True)
class Tune:
    """How a network is trained on.

    Args:
        epochs: passes over the batches; 0 trains nothing.
        optimizer: from the parameters to an optimizer; None is SGD (0.05, Nesterov momentum 0.9, weight decay 5e-4) for a
            network with BatchNorm, and AdamW (1e-3, weight decay 0.01) for others.
        warmup: share of the steps in which the rate rises linearly; it then falls as a cosine to zero.
        clip: largest norm of the gradient; 0 clips nothing.
        autocast: the type of the forward pass, such as `torch.bfloat16`; None computes in the weights' type.

    Raises:
        ValueError: a number is out of its range.
    """

    epochs: int
    optimizer: Optimize | None = None
    warmup: float = 0.1
    clip: float = 0.0
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        validate.whole_number(self, "epochs", least=0)
        validate.within(self, "[0, 1)", "warmup", what="a share of the steps,")
        validate.not_negative(self, "clip")
        if self.optimizer is not None and not callable(self.optimizer):
            validate.refuse(self, "optimizer", "a function of the parameters: lambda p: torch.optim.SGD(p, lr=0.01)")

    def rate(self, step: int, steps: int) -> float:
        """What the learning rates are multiplied with at this step of so many, counted from 0."""
        rising = self.warmup * steps
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))

    def make(self, net: nn.Module) -> Optimizer:
        """The optimizer over the parameters of `net` that train.

        Raises:
            ValueError: none does, or what was made is no optimizer of these.
        """
        trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        if not trained:
            raise ValueError(
                f"no parameter of this {type(net).__name__} trains (requires_grad is False everywhere): unfreeze what may "
                "adapt, or ask for epochs=0"
            )
        found = (self.optimizer or default_optimizer(net))(trained)
        if not hasattr(found, "param_groups"):
            raise ValueError(
                f"optimizer(parameters) has to return a torch.optim.Optimizer, and returned a {type(found).__name__}"
            )
        given, own = {id(p) for p in trained}, [p for group in found.param_groups for p in group["params"]]
        if not all(id(p) in given for p in own):
            raise ValueError(
                "optimizer(parameters) returned one that trains other parameters than it was given: make it of these, as in "
                "lambda p: torch.optim.SGD(p, lr=0.01), not of those of a network from outside"
            )
        return found


def default_optimizer(net: nn.Module) -> Optimize:
    """SGD for networks with BatchNorm, AdamW for others; see `Tune`."""
    if has_batch_norm(net):
        return lambda p: torch.optim.SGD(p, lr=_CNN_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return lambda p: torch.optim.AdamW(p, lr=_RATE, weight_decay=0.01)


@dataclass(frozen=True)
class Tuned:
    """What a training leaves: mean loss of each epoch, optimizer steps, and seconds by the clock."""

    losses: tuple[float, ...] = ()
    steps: int = 0
    seconds: float = 0.0


def tune(
    net: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    how: Tune,
    *,
    teacher: Adding | None = None,
    file: Path | None = None,
    watch: Watch | None = None,
    still: Collection[str] = (),
    after_epoch: Callable[[int], None] | None = None,
) -> Tuned:
    """Train `net` in place; it is in train mode then.

    Args:
        net: a plain network.
        batches: gone through once an epoch.
        loss: of a network on a batch.
        how: the numbers.
        teacher: a further term.
        file: a checkpoint after each epoch; when it is there, training goes on behind it.
        watch: called after each step.
        still: modules, by name, that stay in eval mode, such as frozen norms.
        after_epoch: called with the number of epochs done.

    Raises:
        ValueError: a loss that is no scalar with a gradient, or batches that run out.
        Diverged: a loss that is not finite.
        CheckpointError: the file belongs to another training.
    """
    if not how.epochs:
        return Tuned()
    each = count(batches)
    steps, opt = how.epochs * each, how.make(net)
    rates = [group["lr"] for group in opt.param_groups]
    losses: list[float] = []
    done, spent = 0, 0.0
    if file is not None and (found := checkpoint.load(file)) is not None:
        done, losses, spent = _resumed(found[0], net, opt)
    listening = teacher.listening(net) if teacher is not None else nullcontext()
    with listening:
        for epoch in range(done, how.epochs):
            began, total, step = time.perf_counter(), torch.zeros((), dtype=torch.float64), epoch * each
            net.train()
            for name, module in net.named_modules():
                if name in still:
                    module.eval()
            for batch in one_pass(batches, each):
                for group, rate in zip(opt.param_groups, rates, strict=True):
                    group["lr"] = rate * how.rate(step, steps)
                opt.zero_grad()
                with cast(net, how.autocast):
                    task = scalar(loss(net, batch))
                    mixed = task if teacher is None else teacher.mix(task, step / steps)
                mixed.backward()
                if how.clip:
                    nn.utils.clip_grad_norm_([p for g in opt.param_groups for p in g["params"]], how.clip)
                opt.step()
                step += 1
                total += float(task.detach())
                if not math.isfinite(number := float(mixed.detach())):
                    raise Diverged(
                        f"the loss became {number} at step {step:,}: lower the learning rate, or pr.Tune(..., clip=1)"
                    )
                if watch is not None:
                    watch(Progress(step, steps, f"epoch {epoch + 1}, loss {number:.4g}"))
            losses.append(float(total) / each)
            spent += time.perf_counter() - began
            if file is not None:
                checkpoint.save(file, _state(epoch + 1, losses, spent, net, opt))
            if after_epoch is not None:
                after_epoch(epoch + 1)
    return Tuned(tuple(losses), steps, spent)


def cast(net: nn.Module, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to this type on the device of the network, or nothing."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(next(net.parameters()).device.type, dtype)


def _state(epoch: int, losses: list[float], spent: float, net: nn.Module, opt: Optimizer) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "losses": list(losses),
        "seconds": spent,
        "net": dict(net.state_dict()),
        "opt": opt.state_dict(),
        "random": random_state(),
    }


def load_versioned(net: nn.Module, kept: dict[str, Tensor]) -> None:
    """Load a state from a file, which keeps tensors alone: the versions that some modules ask for are the network's own.

    Raises:
        KeyError: it is the state of another network.
    """
    state = net.state_dict()
    missing, unexpected = state.keys() - kept.keys(), kept.keys() - state.keys()
    if missing or unexpected:
        raise KeyError(f"it lacks {sorted(missing)[:3]} and has {sorted(unexpected)[:3]} besides")
    state.update(kept)
    net.load_state_dict(state)


def _resumed(state: dict[str, Any], net: nn.Module, opt: Optimizer) -> tuple[int, list[float], float]:
    """Epochs done, losses and seconds; the network, the optimizer and all random states are put back.

    Raises:
        CheckpointError: the state belongs to another training.
    """
    try:
        load_versioned(net, state["net"])
        opt.load_state_dict(state["opt"])
        set_random_state(state["random"])
        return int(state["epoch"]), [float(value) for value in state["losses"]], float(state["seconds"])
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise checkpoint.CheckpointError(
            f"the checkpoint belongs to another training ({error}): name another folder, or remove it to begin anew"
        ) from error
