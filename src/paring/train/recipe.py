"""The recipe of a training run: numbers only, frozen, so that it is its own config, CLI schema and part of the hash."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

_OPTIMIZERS = ("adam", "adamw", "sgd")
_SCHEDULES = ("constant", "cosine", "linear", "step")


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Args:
        epochs: passes over the training set.
        batch: examples per optimizer step and forward pass (times `accumulate`).
        lr: learning rate of the weights; gates get their own multiple of it.
        optimizer: "adam", "adamw" or "sgd".
        momentum: momentum of sgd.
        nesterov: Nesterov momentum for sgd.
        weight_decay: weight decay of the weights (never of gates).
        schedule: "constant", "cosine" (to 0), "linear" (to 0) or "step" (times `gamma` at each of `milestones`).
        milestones: epochs at which "step" drops the learning rate.
        gamma: factor of each drop.
        warmup: epochs of linear warm-up.
        ema: decay of the moving average of the weights that is evaluated and kept; 0 switches it off.
        clip: largest gradient norm; 0 switches clipping off.
        accumulate: minibatches per optimizer step.
        crop: padding for random crops of the images, in pixels; 0 switches it off.
        flip: random horizontal flips.
        seed: seeds initialisation, order, gates and augmentation.
        device: where to train, e.g. "cpu" or "cuda".
        bf16: run the forward pass under bfloat16 autocast.
        compile: run the network through torch.compile.
        conditional: do not compute units whose gates draw an exact zero in a step, with widths of convolutions rounded up
            to a multiple of this (16 suits most processors); the same training up to rounding. 0 switches it off.
        channels_last: keep images and the weights of convolutions in that memory order: up to twice as fast as PyTorch's
            own order; False trains in the latter.
    """

    epochs: int = 10
    batch: int = 100
    lr: float = 1e-3
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear", "step"] = "constant"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup: float = 0.0
    ema: float = 0.0
    clip: float = 0.0
    accumulate: int = 1
    crop: int = 0
    flip: bool = False
    seed: int = 0
    device: str = "cpu"
    bf16: bool = False
    compile: bool = False
    conditional: int = 0
    channels_last: bool = True

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type == "float":
                object.__setattr__(self, f.name, float(value))
                if not math.isfinite(value):
                    raise ValueError(f"{f.name} = {value}: must be a finite number")
            elif f.type == "int" and (isinstance(value, bool) or int(value) != value):
                raise ValueError(f"{f.name} = {value}: must be a whole number")
        for name, allowed in (("optimizer", _OPTIMIZERS), ("schedule", _SCHEDULES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} = {getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        least = {"epochs": 1, "batch": 1, "accumulate": 1, "crop": 0, "seed": 0, "conditional": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {low}")
        for name in ("weight_decay", "warmup", "clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must not be negative")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr = {self.lr}: must be a positive number")
        for name, value in (("ema", self.ema), ("momentum", self.momentum)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} = {value}: must lie in [0, 1)")
        if self.schedule == "step" and not self.milestones:
            raise ValueError("schedule 'step' needs milestones: the epochs at which the learning rate drops")
        if self.conditional and self.compile:
            raise ValueError("conditional and compile do not go together: the sizes change from step to step")
        if self.warmup > self.epochs:
            raise ValueError(f"warmup = {self.warmup} epochs is longer than the training of {self.epochs}")

    def factor(self, step: int, epoch_steps: int) -> float:
        """What the learning rates are multiplied with at this optimizer step (counted from 0)."""
        epoch = step / epoch_steps
        if epoch < self.warmup:
            return (step + 1) / (self.warmup * epoch_steps + 1)
        part = (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-12)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * part))
        if self.schedule == "linear":
            return 1 - part
        if self.schedule == "step":
            return self.gamma ** sum(epoch >= mark for mark in self.milestones)
        return 1.0

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over these parameter groups."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=self.lr, fused=True)
