"""Scales that are eight-bit themselves, as QLoRA's double quantisation leaves them: v = R(R(c s) + z) with one z for the whole tensor.

The 256 numbers c are those of the dynamic data type (Dettmers and others, "8-bit Optimizers via Block-wise Quantization", 2021): of
each decade from 1e-6 to 1, cut into 1, 2, 4, ... 64 equal parts, the middles, of both signs, and 0 and 1.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paring.files.pare.forms import Doubles, Part, bounds, interval, same
from paring.files.pare.groups import Floats, Form, computed

Bits = NDArray[Any]
SIZE = 256
_DECADES = 7
_NEARLY = 1e-5  # of the largest, by which a line through the levels may be off
_CLOSE = 3  # float32 numbers on each side of a rough scale that are tried
_AROUND = 24  # float32 numbers on each side of a rough offset that are tried


@functools.cache
def dynamic_numbers() -> Floats:
    """The 256 numbers, in order, in the float32 arithmetic of torch."""
    found = [0.0, 1.0]
    for decade in range(_DECADES):
        ends = torch.linspace(0.1, 1, 2**decade + 1)
        middles = 10 ** (decade + 1 - _DECADES) * ((ends[:-1] + ends[1:]) / 2)
        found += [*middles.tolist(), *(-middles).tolist()]
    return np.array(sorted(found), dtype=np.float32)


@dataclass(frozen=True)
class Dynamic:
    """Levels of the dynamic data type, and the offset of all groups."""

    form: Form
    offset: float

    @property
    def book(self) -> Floats:
        """The numbers of the levels."""
        return dynamic_numbers()

    def fit(self, values: Doubles, low: Doubles, high: Doubles) -> Part | None:
        """As in `forms.Kind`."""
        levels = _levels(values - self.offset)
        number = self.book[levels]
        product = number.astype(np.float64)
        slack = np.abs(values - self.offset) * 2.0**-24  # the product is rounded before the sum
        least, most = interval(low - self.offset - slack, high - self.offset + slack, product)
        if not (least <= most).all():
            return None
        middle = (least + np.where(np.isfinite(most), most, least)) / 2
        scales, wrong = middle.astype(np.float32), np.arange(len(values))
        offsets = np.full(len(values), self.offset, dtype=np.float32)
        for place in range(2 * _CLOSE + 1):
            away = (place + 1) // 2 * (1 if place % 2 else -1)
            scales[wrong] = (middle[wrong].astype(np.float32).view(np.int32) + np.int32(away)).view(np.float32)
            made = computed(self.form, number[wrong], scales[wrong, None], offsets[wrong, None])
            wrong = wrong[~same(made, values[wrong])]
            if not len(wrong):
                break
        if len(wrong):
            return None
        return levels.astype(np.float64), scales, offsets


def learn_dynamic(some: Bits, form: Form) -> Dynamic | None:
    """The offset that gives all groups of a sample; near what a line through their levels says."""
    if form.rounding != "float32" or form.size != SIZE:
        return None
    form = replace(form, offsets="add", listed=True)
    values, low, high = bounds(some, form.rounding)
    offset = values.mean()
    for _ in range(3):
        number = dynamic_numbers()[_levels(values - offset)].astype(np.float64)
        centred = number - number.mean(1, keepdims=True)
        spread = (centred**2).sum(1)
        if not spread.all():
            return None
        slope = (centred * values).sum(1) / spread
        offset = np.median(values.mean(1) - slope * number.mean(1))
    if np.abs(values - offset - slope[:, None] * number).max() > _NEARLY * np.abs(values).max():
        return None
    rough = np.array([offset], dtype=np.float32).view(np.int32)
    for place in range(2 * _AROUND + 1):
        away = (place + 1) // 2 * (1 if place % 2 else -1)
        kind = Dynamic(form, float((rough + np.int32(away)).view(np.float32)[0]))
        if kind.fit(values, low, high) is not None:
            return kind
    return None


def _levels(values: Doubles) -> NDArray[np.int64]:
    """The nearest level of every entry, of which the largest of a group is 1 or the last before -1."""
    book = dynamic_numbers().astype(np.float64)
    top = np.maximum(values.max(1) / book[-1], values.min(1) / book[0])
    share = values / np.where(top > 0, top, 1)[:, None]
    return np.searchsorted((book[1:] + book[:-1]) / 2, share)
