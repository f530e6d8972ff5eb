"""XNOR and popcount, compiled by numba (extra `bits`): the loops under the layers of bits.

Bits are int64 words; bit j of word i belongs to channel 64 i + j, bits beyond the channels are 0. Activations have the
shape (N, H, W, P, words): P planes, one for a sign, n for a staircase of n steps. Weights have the shape
(groups, blocks, K, 64): word k of the 64 output channels of a block lie side by side, so that a vector register holds
the same word of 8 output channels and no sum crosses its lanes.

    count(row, channel) = Σ_planes Σ_k popcount(x_k xor w_k)

Every function releases the lock of the interpreter and touches only the rows and blocks it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from paring.bits.tile import LANES, ROWS, WORD, below, between, bring, inside, many, scaled, single

CHUNK = 24  # rows whose patches and counts are held at a time


def _jit(function: Callable[..., Any]) -> Any:
    return njit(nogil=True, cache=True, boundscheck=False)(function)


@_jit
def count_rows(
    x: Any, at: int, row: int, plane: int, planes: int, words: Any, first: int, size: int, counts: Any, rows: int
) -> None:
    """counts[64 i + j] of row i and channel j of a block whose weights begin at `first`."""
    for lane in range(0, WORD, LANES):
        i = 0
        while i + ROWS <= rows:
            many(x, at + i * row, row, plane, planes, words, first + lane, size, counts, WORD * i + lane)
            i += ROWS
        while i < rows:
            single(x, at + i * row, row, plane, planes, words, first + lane, size, counts, WORD * i + lane)
            i += 1


@_jit
def cut(x: Any, at: int, across: int, bit: int, count: int, scratch: Any, put: int) -> None:
    """`count` bits from number `bit` on of the `across` words at `at`, as words of their own."""
    word, shift, rest = bit // 64, bit % 64, count % 64
    per = (count + 63) // 64
    for j in range(per):
        low = np.uint64(x[at + word + j]) >> np.uint64(shift)
        if shift != 0 and word + j + 1 < across:
            low |= np.uint64(x[at + word + j + 1]) << np.uint64(64 - shift)
        if j == per - 1 and rest != 0:
            low &= (np.uint64(1) << np.uint64(rest)) - np.uint64(1)
        scratch[put + j] = np.int64(low)


@_jit
def patches(
    x: Any, height: int, width: int, planes: int, across: int, geometry: Any, group: int, start: int, rows: int,
    scratch: Any,
) -> None:  # fmt: skip
    """What `rows` output positions from `start` on see of one group: scratch[(plane, row, tap, word)]; 0 outside."""
    kh, kw, sh, sw, ph, pw, dh, dw, channels, oh, ow, groups = geometry[:12]
    per = (channels + 63) // 64
    row, size = kw * per, kh * kw * per
    runs = groups == 1 and planes == 1 and dw == 1
    n, oy, ox = start // (oh * ow), start // ow % oh, start % ow
    for i in range(rows):
        left = ox * sw - pw
        first, last = min(kw, max(0, -left)), max(0, min(kw, width - left))
        for ky in range(kh):
            y = oy * sh - ph + ky * dh
            line = (n * height + y) * width
            if runs:
                put = i * size + ky * row
                inner, outer = (0, 0) if y < 0 or y >= height else (first * per, max(first, last) * per)
                at = (line + left) * per
                bring(x, at, inner, outer, scratch, put, row)
                continue
            for kx in range(kw):
                z = left + kx * dw
                outside = y < 0 or y >= height or z < 0 or z >= width
                for p in range(planes):
                    put = (p * CHUNK + i) * size + ky * row + kx * per
                    if outside:
                        for j in range(per):
                            scratch[put + j] = 0
                    else:
                        cut(x, ((line + z) * planes + p) * across, across, group * channels, channels, scratch, put)
        ox += 1
        if ox == ow:
            ox = 0
            oy += 1
            if oy == oh:
                oy = 0
                n += 1


@_jit
def threshold(
    x: Any, height: int, width: int, planes: int, across: int, words: Any, geometry: Any, kinds: Any, limits: Any,
    levels: int, direct: bool, start: int, stop: int, first: int, last: int, scratch: Any, counts: Any, out: Any,
) -> None:  # fmt: skip
    """out[row, q, word]: bit set where the count is at most limits[kind of the position, q, channel].

    x, words, limits and out come flat. direct: a row is K words of x as they lie. first, last: blocks of output channels.
    """
    groups, blocks, filters = geometry[11], geometry[12], geometry[13]
    positions = geometry[9] * geometry[10]
    size = geometry[0] * geometry[1] * ((geometry[8] + 63) // 64)
    target = (groups * filters + 63) // 64
    for begin in range(start, stop, CHUNK):
        rows = min(CHUNK, stop - begin)
        for g in range(groups):
            if not direct:
                patches(x, height, width, planes, across, geometry, g, begin, rows, scratch)
            for b in range(first, last):
                weights = (g * blocks + b) * size * WORD
                if direct:
                    count_rows(x, begin * size, size, 0, 1, words, weights, size, counts, rows)
                else:
                    count_rows(scratch, 0, size, CHUNK * size, planes, words, weights, size, counts, rows)
                bit = g * filters + WORD * b
                word, shift = bit // 64, bit % 64
                step = levels * groups * blocks * WORD
                t = (g * blocks + b) * WORD
                position = begin % positions
                for i in range(rows):
                    line = t + kinds[position] * step
                    position = position + 1 if position + 1 < positions else 0
                    for q in range(levels):
                        found = below(counts, WORD * i, limits, line + q * groups * blocks * WORD)
                        put = ((begin + i) * levels + q) * target + word
                        if groups == 1:
                            out[put] = found
                        else:
                            out[put] |= found << shift
                            if shift != 0 and word + 1 < target:
                                out[put + 1] |= np.int64(np.uint64(found) >> np.uint64(64 - shift))


@_jit
def project(
    x: Any, height: int, width: int, planes: int, across: int, words: Any, geometry: Any, kinds: Any, base: Any,
    each: float, factor: Any, shift: Any, direct: bool, start: int, stop: int, first: int, last: int, scratch: Any,
    counts: Any, held: Any, out: Any,
) -> None:  # fmt: skip
    """out[row, channel] = float32(factor (base[kind of the position, channel] - each count) + shift).

    base, factor and shift are filled up to whole blocks; out comes flat. held: 64 float32 of scratch.
    """
    groups, blocks, filters = geometry[11], geometry[12], geometry[13]
    positions = geometry[9] * geometry[10]
    size = geometry[0] * geometry[1] * ((geometry[8] + 63) // 64)
    for begin in range(start, stop, CHUNK):
        rows = min(CHUNK, stop - begin)
        for g in range(groups):
            if not direct:
                patches(x, height, width, planes, across, geometry, g, begin, rows, scratch)
            for b in range(first, last):
                weights = (g * blocks + b) * size * WORD
                if direct:
                    count_rows(x, begin * size, size, 0, 1, words, weights, size, counts, rows)
                else:
                    count_rows(scratch, 0, size, CHUNK * size, planes, words, weights, size, counts, rows)
                channel = g * filters + WORD * b
                length = min(WORD, filters - WORD * b)
                here = (g * blocks + b) * WORD
                position = begin % positions
                for i in range(rows):
                    t = kinds[position] * groups * blocks * WORD + here
                    position = position + 1 if position + 1 < positions else 0
                    line = (begin + i) * groups * filters + channel
                    if length == WORD:
                        scaled(counts, WORD * i, base, t, each, factor, here, shift, here, out, line)
                    else:
                        scaled(counts, WORD * i, base, t, each, factor, here, shift, here, held, 0)
                        for j in range(length):
                            out[line + j] = held[j]


@_jit
def encode_last(x: Any, low: Any, high: Any, start: int, stop: int, out: Any) -> None:
    """out[row, p, word]: low[p, c] <= x[row, c] <= high[p, c], for rows from start to stop; channels lie side by side.

    x, low, high come flat.
    """
    _, planes, across = out.shape
    channels = low.size // planes
    for row in range(start, stop):
        for p in range(planes):
            for word in range(channels // 64):
                c = 64 * word
                out[row, p, word] = inside(x, row * channels + c, low, p * channels + c, high, p * channels + c)
            if channels % 64:
                bits = np.uint64(0)
                for c in range(channels // 64 * 64, channels):
                    value = x[row * channels + c]
                    yes = (value >= low[p * channels + c]) & (value <= high[p * channels + c])
                    bits |= np.uint64(yes) << np.uint64(c % 64)
                out[row, p, across - 1] = np.int64(bits)


@_jit
def transpose(held: Any) -> None:
    """64 words of 64 bits, in place, by swapping blocks of half the size each time."""
    half = 32
    mask = np.int64(0xFFFFFFFF)
    while half > 0:
        for base in range(0, 64, 2 * half):
            for k in range(base, base + half):
                swap = ((held[k] >> half) ^ held[k + half]) & mask
                held[k + half] ^= swap
                held[k] ^= swap << half
        half >>= 1
        mask ^= mask << half


@_jit
def encode_first(
    x: Any, positions: int, low: Any, high: Any, start: int, stop: int, held: Any, line: Any, out: Any
) -> None:
    """The same for x[n, c, position]; out[(n, position), p, word], for (n, word) number start to stop.

    held, line: scratch of 64 int64 and 64 float32.
    """
    _, planes, across = out.shape
    channels = low.size // planes
    for item in range(start, stop):
        n, word = item // across, item % across
        here = min(64, channels - 64 * word)
        for p in range(planes):
            for block in range((positions + 63) // 64):
                begin = max(0, min(64 * block, positions - 64))
                for c in range(here):
                    channel = 64 * word + c
                    bottom, top = low[p * channels + channel], high[p * channels + channel]
                    at = (n * channels + channel) * positions + begin
                    if positions >= 64:
                        held[c] = between(x, at, bottom, top)
                    else:
                        for s in range(positions):
                            line[s] = x[at + s]
                        held[c] = between(line, 0, bottom, top)
                for c in range(here, 64):
                    held[c] = 0
                transpose(held)
                for s in range(min(64, positions)):
                    out[n * positions + begin + s, p, word] = held[s]


@_jit
def decode(x: Any, values: Any, positions: int, channels: int, start: int, stop: int, out: Any) -> None:
    """out[n, c, position] = values[number of bits set in the planes], for (n, c) number start to stop.

    x[(n, position), p, word].
    """
    for item in range(start, stop):
        n, c = item // channels, item % channels
        word, bit = c // 64, c % 64
        for s in range(positions):
            count = 0
            for p in range(x.shape[1]):
                count += (x[n * positions + s, p, word] >> bit) & 1
            out[item * positions + s] = values[count]


@_jit
def pool(x: Any, geometry: Any, every: Any, start: int, stop: int, out: Any) -> None:
    """Per window the union of its bits, where `every` is set the intersection; positions outside do not count.

    For lines of the output, (n, oy) number start to stop.
    """
    kh, kw, sh, sw, ph, pw, dh, dw = geometry[:8]
    height, width, planes, across = x.shape[1:]
    for item in range(start, stop):
        n, oy = item // out.shape[1], item % out.shape[1]
        for ox in range(out.shape[2]):
            for p in range(planes):
                for j in range(across):
                    union, meet = np.int64(0), np.int64(-1)
                    for ky in range(kh):
                        y = oy * sh - ph + ky * dh
                        if y < 0 or y >= height:
                            continue
                        for kx in range(kw):
                            z = ox * sw - pw + kx * dw
                            if z < 0 or z >= width:
                                continue
                            union |= x[n, y, z, p, j]
                            meet &= x[n, y, z, p, j]
                    out[n, oy, ox, p, j] = (union & ~every[j]) | (meet & every[j])
