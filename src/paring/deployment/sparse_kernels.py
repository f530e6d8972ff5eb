"""Sparse linear layers and convolutions, compiled by numba (extra `bits`).

The weight is a matrix of rows (outputs) and taps (inputs; for convolutions input channel, ky, kx), packed row by row:
`values` that are not zero, their `taps`, and where each row `starts`. Every function releases the lock of the interpreter
and touches only the rows it is asked for. All arrays come flat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from paring.deployment.vectors import WIDTH, columns1, columns2, columns4, columns8, dot, move

EXAMPLES = 4  # vectors of examples that a linear layer takes at once
BLOCK = 16  # outputs that are turned round together


def _jit(function: Callable[..., Any]) -> Any:
    return njit(nogil=True, cache=True, boundscheck=False)(function)


@_jit
def vector(x: Any, taps: Any, values: Any, starts: Any, bias: Any, first: int, last: int, out: Any) -> None:
    """out[o] = bias[o] + Σ values x[taps]: one example."""
    for o in range(first, last):
        out[o] = dot(x, taps, values, starts[o], starts[o + 1], bias[o])


@_jit
def row(
    count: int, x: Any, at: int, ats: Any, first: int, table: Any, taps: Any, values: Any, start: int, stop: int,
    bias: Any, out: Any, put: int, puts: Any,
) -> None:  # fmt: skip
    """One row of the weight times the vectors from `first` to `first + count`; see `vectors`. count: 1, 2, 4 or 8."""
    if count == 8:
        columns8(x, at, ats, first, table, taps, values, start, stop, bias, out, put, puts)
    elif count == 4:
        columns4(x, at, ats, first, table, taps, values, start, stop, bias, out, put, puts)
    elif count == 2:
        columns2(x, at, ats, first, table, taps, values, start, stop, bias, out, put, puts)
    else:
        columns1(x, at, ats, first, table, taps, values, start, stop, bias, out, put, puts)


@_jit
def size(left: int, most: int) -> int:
    """The largest power of two that is at most `left` and `most`."""
    count = most
    while count > left:
        count //= 2
    return count


@_jit
def matrix(
    x: Any, examples: int, inputs: int, outputs: int, taps: Any, values: Any, starts: Any, bias: Any, first: int,
    last: int, table: Any, ats: Any, turned: Any, held: Any, out: Any,
) -> None:  # fmt: skip
    """out[n, o] = bias[o] + Σ values x[n, taps], for outputs from `first` to `last`.

    table: inputs int64; ats: EXAMPLES int64; turned: 8 EXAMPLES inputs float32; held: 8 EXAMPLES BLOCK float32; scratch.
    """
    for v in range(EXAMPLES):
        ats[v] = WIDTH * v
    n = 0
    while n < examples:
        count = size((examples - n + WIDTH - 1) // WIDTH, EXAMPLES)
        wide = WIDTH * count
        here = min(wide, examples - n)
        for i in range(inputs):
            table[i] = i * wide
            for j in range(here):
                turned[i * wide + j] = x[(n + j) * inputs + i]
            for j in range(here, wide):
                turned[i * wide + j] = 0
        for block in range(first, last, BLOCK):
            rows = min(BLOCK, last - block)
            for b in range(rows):
                o = block + b
                row(
                    count,
                    turned,
                    0,
                    ats,
                    0,
                    table,
                    taps,
                    values,
                    starts[o],
                    starts[o + 1],
                    bias[o],
                    held,
                    b * wide,
                    ats,
                )
            for j in range(here):
                for b in range(rows):
                    out[(n + j) * outputs + block + b] = held[b * wide + j]
        n += wide


@_jit
def copy(x: Any, at: int, step: int, count: int, out: Any, put: int) -> None:
    """out[put + j] = x[at + step j], j < count."""
    if step == 1 and count >= WIDTH:
        for j in range(0, count - WIDTH, WIDTH):
            move(x, at + j, out, put + j)
        move(x, at + count - WIDTH, out, put + count - WIDTH)
    else:
        for j in range(count):
            out[put + j] = x[at + step * j]


@_jit
def lay(x: Any, image: int, images: int, geometry: Any, phases: Any, plane: int, laid: Any) -> None:
    """The images side by side, with zeros around them: laid[channel, phase, image, y, x].

    A phase (ry, rx) holds rows ry, ry + stride, ... and columns rx, rx + stride, ... of the padded image.
    """
    channels, height, wide, top, left, sy, sx, lines, across = geometry[:9]
    count = len(phases) // 2
    for c in range(channels):
        for f in range(count):
            ry, rx = phases[2 * f], phases[2 * f + 1]
            begin = min(across, max(0, -((rx - left) // sx)))
            end = max(begin, min(across, (wide - 1 - rx + left) // sx + 1))
            put = (c * count + f) * plane
            for n in range(images):
                source = ((image + n) * channels + c) * height
                for line in range(lines):
                    y = line * sy + ry - top
                    stop = begin if y >= 0 and y < height else 0
                    for q in range(stop):
                        laid[put + q] = 0
                    if y >= 0 and y < height:
                        copy(x, (source + y) * wide + rx - left + begin * sx, sx, end - begin, laid, put + begin)
                        stop = end
                    for q in range(stop, across):
                        laid[put + q] = 0
                    put += across
            for q in range(put, (c * count + f + 1) * plane):
                laid[q] = 0


@_jit
def convolve(
    x: Any, begin: int, end: int, step: int, geometry: Any, phases: Any, table: Any, plane: int, ats: Any, puts: Any,
    line: Any, outputs: int, taps: Any, values: Any, starts: Any, bias: Any, first: int, last: int, laid: Any, held: Any,
    out: Any,
) -> None:  # fmt: skip
    """Outputs from `first` to `last` of images from `begin` to `end`, `step` images at a time.

    table: where each tap begins in what `lay` leaves, or in the image itself where there is nothing to lay (no laid).
    ats, puts: where the vectors of `step` images lie, and where they go in the output of channel 0.
    line: 0, 8, 16, ..., as many. laid, held (8 vectors): scratch.
    """
    channels, height, wide, high, broad = geometry[0], geometry[1], geometry[2], geometry[9], geometry[10]
    positions = high * broad
    per = len(ats) // step
    for image in range(begin, end, step):
        images = min(step, end - image)
        source, at = x, image * channels * height * wide
        if len(laid) > 0:
            lay(x, image, images, geometry, phases, plane, laid)
            source, at = laid, 0
        v = 0
        while v < per * images:
            count = size(per * images - v, 8)
            for o in range(first, last):
                put = (image * outputs + o) * positions
                if broad >= WIDTH:
                    row(
                        count,
                        source,
                        at,
                        ats,
                        v,
                        table,
                        taps,
                        values,
                        starts[o],
                        starts[o + 1],
                        bias[o],
                        out,
                        put,
                        puts,
                    )
                else:
                    row(
                        count,
                        source,
                        at,
                        ats,
                        v,
                        table,
                        taps,
                        values,
                        starts[o],
                        starts[o + 1],
                        bias[o],
                        held,
                        -WIDTH * v,
                        line,
                    )
                    for w in range(count):
                        for j in range(broad):
                            out[put + puts[v + w] + j] = held[WIDTH * w + j]
            v += count
