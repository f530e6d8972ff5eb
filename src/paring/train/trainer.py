"""One training, epoch by epoch: what `fit` runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.analysis import CaptureError
from paring.core import STATE_KEY, Clock, Method, attached, bare_state, short_repr, unwrapped
from paring.core.plain_json import is_count, shown
from paring.data import Augment, Dataset
from paring.gates import expected, support
from paring.run import Run, attach
from paring.run.saved import check_fields, check_tensors
from paring.train import checkpoint
from paring.train.ema import Ema
from paring.train.evaluate import evaluate
from paring.train.guard import Diverged, bad_loss, bad_parameter
from paring.train.recipe import Recipe
from paring.train.record import Record, as_text, from_text
from paring.train.restore import FIELDS, check_average, check_numbers, check_optimizer, check_random

CHECKPOINT = "checkpoint.pt"
ROUND = "round-{}.pt"
POINT = "point.pt"
METRICS = "metrics.jsonl"
_LOOK = 50  # steps on a GPU between two looks at the losses


@dataclass(frozen=True)
class Fit:
    """A finished training.

    Attributes:
        net: the trained network, gates included, holding the averaged weights when the recipe asks for an EMA.
        run: its handle; `run.finish()` gives the small network.
        rows: one record per epoch, of all rounds.
        seconds: time spent in training steps, without evaluation and checkpoints.
        cpu_seconds: the same of this process, all its threads, whatever else the machine does.
    """

    net: nn.Module
    run: Run
    rows: list[dict[str, Any]]
    seconds: float
    cpu_seconds: float


def round_state(net: nn.Module, number: int) -> dict[str, Any]:
    """What is kept of a round: its number, the attached network, and what its attachment remembers (cuts, for one)."""
    return {"round": number, "net": bare_state(net), "state": attached(net).state.plain()}


class Trainer:
    """One `fit`, epoch by epoch: `begin()`, then `train_epoch()` until `done`, then `end()`.

    A method of several rounds trains several times; each round but the last leaves its network in `round-0.pt`, ..., and
    the rewind point, if there is one, lies in `point.pt`, as large as the network was then.
    A round that begins in the middle of an epoch trains the rest of it first.

    It draws from torch's global random generator; who runs two in turns keeps their random states apart.

    Attributes:
        epoch: epochs done, of all rounds.
        done: whether the last round is over.
        seconds, cpu_seconds: wall-clock and process time spent in training steps.
        record: one row per epoch.
    """

    run: Run
    opt: torch.optim.Optimizer

    def __init__(
        self, net: nn.Module, method: Method, data: Dataset, recipe: Recipe, folder: Path | None, start: int = 0
    ) -> None:
        self.device = torch.device(recipe.device)
        self.given, self.method, self.recipe = net.to(self.device), method, recipe
        self.net = unwrapped(net)
        self.train, self.validation = data.train.to(self.device), data.validation.to(self.device)
        turned = recipe.channels_last and self.train.x.dim() == 4
        self.layout = torch.channels_last if turned else torch.contiguous_format
        if turned:
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if len(self.train) == 0:
            raise ValueError(f"the training part of '{data.name}' is empty")
        per_step = recipe.batch * recipe.accumulate
        self.epoch_steps = math.ceil(len(self.train) / per_step)
        self.start = start
        if not 0 <= start < self.epoch_steps * recipe.epochs:
            raise ValueError(
                f"start = {start}: training has {self.epoch_steps * recipe.epochs} steps and begins in one of them"
            )
        self.augment = Augment(crop=recipe.crop, flip=recipe.flip)
        self.folder = folder
        self.epoch, self.seconds, self.cpu_seconds = 0, 0.0, 0.0
        self.tasks: list[Tensor] = []  # losses of this epoch without the penalty
        self.forward: Any = torch.compile(self.net) if recipe.compile else net
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.record = Record(folder / METRICS if folder is not None else None)

    def begin(self) -> None:
        """Seed, attach, and go back to the last checkpoint if there is one."""
        torch.manual_seed(self.recipe.seed)
        steps = self.epoch_steps * self.recipe.epochs
        self.done = False
        self.run = attach(
            self.given,
            self.method,
            self.train.x[:2],
            steps=steps,
            epoch_steps=self.epoch_steps,
            batch=self.recipe.batch,
            loss=self._score_loss,
            step=self.start,
        )
        self.opt = self.recipe.make_optimizer(self.run.parameter_groups(self.recipe.lr, self.recipe.weight_decay))
        for group in self.opt.param_groups:
            group["initial_lr"] = group["lr"]
        self.ema = Ema(self.net, self.recipe.ema) if self.recipe.ema else None
        if self.ema is not None:
            self.run.track(self.ema)
        rounds = range(1, self.method.rounds)
        backs = [self.method.begin(Clock(0, number, steps, self.epoch_steps)).step for number in rounds]
        self.epochs = sum(math.ceil((steps - back) / self.epoch_steps) for back in (self.start, *backs))
        torch.manual_seed(self.recipe.seed)
        found = checkpoint.load(self.folder / CHECKPOINT, self._check_state) if self.folder is not None else None
        if found is None:
            self.record.reset([])
            self._keep_point()
        else:
            self._restore(found[0])
        self.dense = self._dense_cost()
        if self.recipe.conditional:
            self.forward = self.run.conditional(self.recipe.conditional)

    def _dense_cost(self) -> bool:
        """Whether costs can be counted. Without a capture, a method that needs none still trains."""
        try:
            self.run.cost()
        except CaptureError as error:
            self.record.add({"note": f"costs are not recorded: {error}"})
            return False
        return True

    def train_epoch(self) -> dict[str, Any]:
        """One pass over the training set, then evaluation, record and checkpoint."""
        recipe = self.recipe
        number, begun = divmod(self.run.clock.step, self.epoch_steps)  # of this round: every round has the same order
        part = 1 - begun / self.epoch_steps
        order = torch.randperm(
            len(self.train), generator=torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
        ).to(self.device)
        batches = order.split(recipe.batch)
        self.net.train()
        started, cpu_started = time.perf_counter(), time.process_time()
        losses: list[Tensor] = []
        self.tasks = []
        looks = len(self.run.shrinks)
        for first in range(begun * recipe.accumulate, len(batches), recipe.accumulate):
            losses.append(self._step(batches[first : first + recipe.accumulate]))
            if self.device.type == "cpu" or len(losses) % _LOOK == 0:
                self._check(losses)
        self._check(losses)
        self.seconds += time.perf_counter() - started
        self.cpu_seconds += time.process_time() - cpu_started
        self._stop_if(bad_parameter(self.net, self.run.clock.step))
        row = self._row(losses, self.run.shrinks[looks:])
        if part < 1:
            row["part"] = part
        if not math.isfinite(row.get("validation_loss", 0.0)):
            self._stop_if(f"the validation loss is {row['validation_loss']}")
        self.record.add(row)
        self.epoch += 1
        if self.run.clock.step >= self.epoch_steps * recipe.epochs:
            self._end_round()
        self._save()
        return row

    def _end_round(self) -> None:
        """Leave the network of this round on disk and begin the next one, if there is one."""
        number = self.run.clock.round
        if self.folder is not None and number + 1 < self.method.rounds:
            with self.ema.applied() if self.ema is not None else nullcontext():
                checkpoint.save(self.folder / ROUND.format(number), round_state(self.net, number))
        self.done = not self.run.next_round(self.opt)
        if not self.done and self.ema is not None:
            self.ema.restart()

    def end(self) -> Fit:
        """Training is over: the network takes over the averaged weights, in eval mode."""
        if self.ema is not None:
            with self.ema.applied():
                averaged = {k: value.clone() for k, value in bare_state(self.net).items() if isinstance(value, Tensor)}
            self.net.load_state_dict(averaged, strict=False)
        self.net.eval()
        return Fit(self.net, self.run, self.record.rows, self.seconds, self.cpu_seconds)

    def _step(self, batches: tuple[Tensor, ...]) -> Tensor:
        recipe = self.recipe
        factor = recipe.factor(self.run.schedule_step, self.epoch_steps)
        for group in self.opt.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.opt.zero_grad()
        total, task = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        count = sum(len(batch) for batch in batches)
        for batch in batches:
            x, y = self.augment(self.train.x[batch]).contiguous(memory_format=self.layout), self.train.y[batch]
            with torch.autocast(self.device.type, torch.bfloat16) if recipe.bf16 else nullcontext():
                out = self.forward(x)
            alone = F.cross_entropy(out.float(), y, reduction="sum") / count
            loss = alone + self.run.penalty() * (len(batch) / count)
            loss.backward()
            total += loss.detach()
            task += alone.detach()
        self.tasks.append(task)
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), recipe.clip)
        before = self.run.point
        self.run.step(self.opt)
        if before is None:
            self._keep_point()
        if self.ema is not None:
            self.ema.update()
        return total

    def _keep_point(self) -> None:
        """Leave the rewind point on disk when it is there: the one in memory is cut whenever the network is."""
        if self.folder is not None and self.method.rounds > 1 and self.run.point is not None:
            state = {"point": self.run.point, "state": attached(self.net).state.plain()}
            checkpoint.save(self.folder / POINT, state)

    def _score_loss(self, net: Callable[..., Any]) -> Tensor:
        """Cross-entropy on a class-balanced batch of training examples, for methods that score weights before training."""
        draw = torch.Generator().manual_seed(self.recipe.seed)
        shuffled = torch.randperm(len(self.train), generator=draw).to(self.device)
        labels = self.train.y[shuffled]
        classes = labels.unique()
        each = math.ceil(self.recipe.batch / len(classes))
        batch = torch.cat([shuffled[labels == one][:each] for one in classes])
        out = net(self.train.x[batch].contiguous(memory_format=self.layout))
        return F.cross_entropy(out.float(), self.train.y[batch])

    def _check(self, losses: list[Tensor]) -> None:
        """Stop when one of the losses since the last check is not finite."""
        self._stop_if(bad_loss(losses[-1 if self.device.type == "cpu" else -_LOOK :], self.run.clock.step))

    def _stop_if(self, problem: str) -> None:
        if not problem:
            return
        written = self.folder is not None and self.epoch > 0
        kept = f"{self.folder}/{CHECKPOINT} (after epoch {self.epoch})" if written else "none yet"
        raise Diverged(
            f"{problem} (epoch {self.epoch + 1}); last good checkpoint: {kept}. A lower learning rate (now "
            f"{self.recipe.lr}), gradient clipping or a smaller price usually helps"
        )

    def _row(self, losses: list[Tensor], shrinks: list[dict[str, Any]]) -> dict[str, Any]:
        row: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "step": self.run.clock.step,
            **({"round": self.run.clock.round} if self.method.rounds > 1 else {}),
            "loss": float(torch.stack(losses).mean()),
            "task_loss": float(torch.stack(self.tasks).mean()),
            "lr": self.opt.param_groups[0]["lr"],
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }
        if shrinks:
            row["shrinks"] = shrinks
        with self.ema.applied() if self.ema is not None else nullcontext():
            if len(self.validation):
                row["validation_loss"], row["error"] = evaluate(self.net, self.validation)
            if self.dense:
                with torch.no_grad():
                    for name, ask in (("expected", expected), ("support", support)):
                        cost = self.run.cost(ask)
                        row |= {
                            f"{name}_{what}": float(getattr(cost, what)) for what in ("parameters", "macs", "flops")
                        }
                    row["units"] = {
                        layer.name: round(float(layer.outputs))
                        for layer in cost.rows
                        if layer.kind in ("linear", "conv")
                    }
        return row

    def _save(self) -> None:
        if self.folder is None:
            return
        state = {
            "epoch": self.epoch,
            "done": self.done,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "recipe": short_repr(self.recipe),
            "start": self.start,
            "net": bare_state(self.net),
            "opt": self.opt.state_dict(),
            "run": self.run.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_device": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "rows": as_text(self.record.rows),
        }
        checkpoint.save(self.folder / CHECKPOINT, state)

    def _check_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError unless training can go on from this state. Nothing is changed."""
        check_fields(state, FIELDS, "a checkpoint")
        same = state["recipe"] in (short_repr(self.recipe), repr(self.recipe)) and is_count(state["start"])
        if not same or state["start"] != self.start:
            raise ValueError(f"it belongs to another run ({shown(state['recipe'])}), not to {self.recipe!r}")
        check_numbers(state, self.epochs)
        check_random(state, self.device)
        copy_ = self.run.check_state(state["run"])
        if state["done"] != (state["run"]["step"] >= self.epoch_steps * self.recipe.epochs):
            raise ValueError(f"'done' is {state['done']} after {state['run']['step']} steps of this round")
        check_tensors(state["net"], bare_state(copy_), "the network")
        check_optimizer(state["opt"], self.opt, self.net, copy_)
        check_average(state["ema"], self.ema, copy_)
        rows = from_text(state["rows"], "its record")
        if [row["epoch"] for row in rows if "epoch" in row] != list(range(1, state["epoch"] + 1)):
            raise ValueError(f"its record does not tell of the epochs from 1 to {state['epoch']}")

    def _restore(self, state: dict[str, Any]) -> None:
        self.run.load_state_dict(state["run"])
        own = self.net.state_dict()  # with what modules note of their version
        own.pop(STATE_KEY)  # the run has it
        own.update(state["net"])
        self.net.load_state_dict(own)
        self.opt.load_state_dict(state["opt"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.epoch, self.done = state["epoch"], state["done"]
        self.seconds, self.cpu_seconds = state["seconds"], state["cpu_seconds"]
        torch.set_rng_state(state["rng"])
        if state["rng_device"] is not None:
            torch.cuda.set_rng_state(state["rng_device"], self.device)
        self.record.reset(from_text(state["rows"], "its record"))
