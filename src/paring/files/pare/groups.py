"""Values of groups: k consecutive entries share a scale, and maybe an offset, as llama.cpp, GPTQ, torchao and bitsandbytes make them.

An entry of a group with scale s and offset z that takes level i is, all in float32,

    R((first + i - z) s)        offsets "", where z = 0, or "shift", where z is an integer
    R(R((first + i) s) + z)     offsets "add"
    R((first + i) s + z)        offsets "fused"

where R rounds to the type of the numbers (float32: nothing more happens). In place of first + i may stand the i-th number of a list.
Scales and offsets are tensors of their own, coded as such: scales that are in groups themselves are found again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[Any]
Floats = NDArray[np.float32]
Rounding = Literal["float32", "float16", "bfloat16"]
Offsets = Literal["", "shift", "add", "fused"]
ROUNDINGS: tuple[Rounding, ...] = ("float32", "float16", "bfloat16")
OFFSETS: tuple[Offsets, ...] = ("", "shift", "add", "fused")
BLOCK = 1 << 16  # entries that are computed at once


@dataclass(frozen=True)
class Form:
    """What the entries of all groups have in common.

    Attributes:
        size: entries of a group.
        rounding: type of the numbers.
        offsets: how an offset enters.
        listed: the levels are numbers of a list, not integers.
    """

    size: int
    rounding: Rounding
    offsets: Offsets = ""
    listed: bool = False


@dataclass(frozen=True)
class Groups:
    """A tensor in groups.

    Attributes:
        form: of its entries.
        book: (values,) float32, the number of each level.
        index: (entries,), the level of every entry.
        scales: (groups,) float32.
        offsets: (groups,) float32; None without offsets.
    """

    form: Form
    book: Floats
    index: NDArray[np.int32]
    scales: Floats
    offsets: Floats | None


def entries(form: Form, book: Floats, index: NDArray[Any], scales: Floats, offsets: Floats | None, width: int) -> Bits:
    """The bit patterns, `width` bytes each, of entries with these levels (any shape, groups in order)."""
    flat, out = index.reshape(-1), np.empty(index.size, dtype=np.dtype(f"u{width}"))
    groups = max(1, BLOCK // form.size)
    for group in range(0, len(scales), groups):
        part = slice(group * form.size, (group + groups) * form.size)
        scale = scales[group : group + groups, None]
        offset = None if offsets is None else offsets[group : group + groups, None]
        made = computed(form, book[flat[part]].reshape(-1, form.size), scale, offset)
        out[part] = patterns(made, form.rounding, width).reshape(-1)
    return out.reshape(index.shape)


def computed(form: Form, levels: Floats, scales: Floats, offsets: Floats | None) -> Floats:
    """The entries with these numbers of levels (groups, size), as float32; scales and offsets are (groups, 1)."""
    with np.errstate(all="ignore"):
        if offsets is not None and form.offsets == "shift":
            levels = levels - offsets
        made = levels * scales
        if offsets is None or form.offsets == "shift":
            return rounded(made, form.rounding)
        return rounded((rounded(made, form.rounding) if form.offsets == "add" else made) + offsets, form.rounding)


def rounded(values: Floats, rounding: Rounding) -> Floats:
    """The nearest numbers of a type, ties to even; as float32."""
    if rounding == "float32":
        return values
    if rounding == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(values).view(np.uint32)
    up = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    found: Floats = np.where(np.isnan(values), bits, up & np.uint32(0xFFFF0000)).view(np.float32)
    return found


def patterns(values: Floats, rounding: Rounding, width: int) -> Bits:
    """The bit patterns of numbers that are of this type: in their own two bytes, or in four as float32."""
    if width == 4:
        return np.ascontiguousarray(values).view(np.uint32)
    if rounding == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    return (np.ascontiguousarray(values).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def numbers(bits: Bits, rounding: Rounding) -> Floats:
    """The inverse of `patterns`."""
    if bits.dtype.itemsize == 4:
        return bits.view(np.float32)
    return (
        bits.view(np.float16).astype(np.float32)
        if rounding == "float16"
        else (bits.astype(np.uint32) << 16).view(np.float32)
    )
