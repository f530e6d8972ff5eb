"""`Split` and `Dataset`: a whole data set as tensors on one device; and the stratified split.

A stratified split of n out of N examples takes from class c either the floor or the ceiling of n * N_c / N of them, by
the method of largest remainders, so every class keeps its share to within one example. Which ones is decided by one
random 64-bit key per example, drawn from PCG64, whose stream numpy promises never to change: the same seed gives the
same split on every machine and in every version.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Examples and their classes: `x` (N, ...) float32 and contiguous, `y` (N,) int64, on the same device.

    Raises ValueError when the tensors are not that.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.dtype != torch.float32 or self.y.dtype != torch.int64:
            raise ValueError(f"a split needs x of float32 and y of int64, not {self.x.dtype} and {self.y.dtype}")
        if self.x.ndim < 1 or self.y.shape != self.x.shape[:1]:
            raise ValueError(
                f"a split needs one class per example: x is {tuple(self.x.shape)}, y {tuple(self.y.shape)}"
            )
        if self.x.device != self.y.device:
            raise ValueError(f"a split lives on one device: x is on {self.x.device}, y on {self.y.device}")
        object.__setattr__(self, "x", self.x.contiguous())

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str | int) -> Split:
        """The same split on `device`."""
        return Split(self.x.to(device), self.y.to(device))

    def take(self, rows: Tensor) -> Split:
        """The examples at `rows` (n,) int64, in that order, as a copy."""
        return Split(self.x[rows], self.y[rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    name: its name in `paring.data.NAMES`. train, validation, test: its parts; `validation` is empty unless asked for.
    classes: number of classes; y is in [0, classes). shape: of one example, (C, H, W).
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    shape: tuple[int, int, int]

    def to(self, device: torch.device | str | int) -> Dataset:
        """The same data set, all of it, on `device`."""
        train, validation, test = (part.to(device) for part in self._parts)
        return replace(self, train=train, validation=validation, test=test)

    def few(self, examples: int, seed: int) -> Dataset:
        """At most so many examples of each part, every class with its share; the seed decides which."""
        parts = (stratified(p, examples, seed)[1] if examples < len(p) else p for p in self._parts)
        train, validation, test = parts
        return replace(self, train=train, validation=validation, test=test)

    @property
    def _parts(self) -> tuple[Split, Split, Split]:
        return self.train, self.validation, self.test


def stratified(split: Split, size: int | float, seed: int) -> tuple[Split, Split]:
    """Divide `split` into (rest, taken), class by class; both keep the order that the examples had.

    size: the number of examples to take, or their fraction in (0, 1), rounded to the nearest number. 0 takes none.
    seed: a whole number >= 0; the same seed takes the same examples always.
    Raises ValueError when size is no such number, takes nothing though not 0, or takes everything.
    """
    total = len(split)
    wanted = _count(size, total)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"the seed of a split must be a whole number >= 0, not {seed!r}")
    none = torch.empty(0, dtype=torch.int64, device=split.y.device)
    if wanted == 0:
        return split, split.take(none)
    y = split.y.cpu().numpy()
    counts = np.bincount(y)
    quota, remainder = np.divmod(wanted * counts, total)
    quota[np.argsort(-remainder, kind="stable")[: wanted - quota.sum()]] += 1
    order = np.lexsort((np.random.PCG64(seed).random_raw(total), y))  # class by class, shuffled inside each
    rank = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    taken = np.zeros(total, dtype=bool)
    taken[order] = rank < np.repeat(quota, counts)
    mask = torch.from_numpy(taken).to(split.y.device)
    return split.take((~mask).nonzero()[:, 0]), split.take(mask.nonzero()[:, 0])


def _count(size: int | float, total: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int | float):
        raise ValueError(f"a part is a number of examples or a fraction of them, not {size!r}")
    if isinstance(size, float) and not 0 <= size < 1:
        raise ValueError(
            f"a part given as a fraction must lie in (0, 1), not {size!r}; give an int for a number of examples"
        )
    wanted = round(size * total) if isinstance(size, float) else size
    if not 0 <= wanted < total or (wanted == 0 and size != 0):
        raise ValueError(
            f"cannot take {size!r} of {total} examples: that is {wanted}, and both parts need at least one"
        )
    return wanted
