"""The mixed code of a matrix of symbols: where they are common, which sign the others have, and how large they are.

Symbol 0 is the common one. Symbols 1 .. below form one set, the rest another (negative and positive numbers). First a
plane of zeros and ones says which symbols are not 0, then one for those says which set (if both have members), both by
`mixing`; the places in the sets follow adaptively, set by set. A trained and pruned layer that looks at images has much
to gain: what survives, and its sign, goes with the neighbouring pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paring.files.pare import mixing, varint
from paring.files.pare.entropy import Chances, Decoder, Encoder, Symbols, adaptive_bits, binary_bits
from paring.files.pare.error import PareError
from paring.files.pare.logs import information
from paring.files.pare.mixing import MOST_LAGS, Flags, Ints, Mix, Where

WHOLE = 1 << 18  # positions that are all looked at when planning; of more
SAMPLE_STEPS, SAMPLE_LANES = 128, 256  # so many
_GLANCE, _GLANCE_STEPS = 1 << 13, 64  # positions that tell, where few symbols are 0, whether contexts promise anything
_RARE, _PROMISING = 0.3, 0.99
FARTHEST = 1 << 20
FREE_STEPS, BYTES_PER_STEP = 4096, 1024
_WORTH = 10.0  # bits that a feature has to save: about what its weight costs
_NOISE = 16.0  # bits that it has to save on a sample, where chance alone saves some


@dataclass(frozen=True)
class Plan:
    """How a matrix is coded.

    Attributes:
        axis: the steps are rows (0) or columns (1).
        below: size of the first set.
        present: model of the plane that says what is not 0.
        upper: model of the plane that says which set; None when only one set has members.
        bits: estimated length.
    """

    axis: int
    below: int
    present: Mix
    upper: Mix | None
    bits: float


def allowed(steps: int, count: int) -> bool:
    """Whether a matrix is coded in reasonable time with so many steps."""
    return steps <= max(4096, count // 256)


class Pace:
    """How many steps the mixed codes of a file may have together: some, and one for every 1024 bytes of its tensors.

    A step takes time however little it codes, so that a small file could otherwise take minutes to read.
    """

    def __init__(self, nbytes: int = 0) -> None:
        self.nbytes, self.steps = nbytes, 0

    def allows(self, steps: int) -> bool:
        """Whether so many more are allowed."""
        return self.steps + steps <= FREE_STEPS + self.nbytes // BYTES_PER_STEP


def plan(symbols: Symbols, size: int, below: int, strides: tuple[int, ...]) -> Plan | None:
    """The best plan for a matrix; None when no axis is allowed.

    Args:
        symbols: (rows, columns).
        size: of the alphabet.
        below: size of the first set.
        strides: distances along columns that may matter, such as the sizes of kernels.
    """
    if symbols.size > 4 * _GLANCE and np.count_nonzero(symbols == 0) < _RARE * symbols.size:
        glance = _planned(symbols, size, below, strides, _GLANCE, _GLANCE_STEPS, _GLANCE // _GLANCE_STEPS)
        alone = information(np.bincount(symbols.reshape(-1), minlength=size).astype(np.int64))
        if glance is None or glance.bits > _PROMISING * alone:
            return None
    return _planned(symbols, size, below, strides, WHOLE, SAMPLE_STEPS, SAMPLE_LANES)


def _planned(
    symbols: Symbols, size: int, below: int, strides: tuple[int, ...], whole: int, some_steps: int, some_lanes: int
) -> Plan | None:
    """`plan`, which looks at `some_steps` of `some_lanes` of matrices of more than `whole` positions."""
    best: Plan | None = None
    for axis in (1, 0):
        view = symbols if axis == 0 else symbols.T
        if not allowed(len(view), view.size) or min(view.shape) < 2:
            continue
        first = max(0, len(view) - some_steps) // 2  # what is in the middle is like the rest, what is first often not
        block = slice(first, first + some_steps)
        part = view if view.size <= whole else view[block, :: -(-view.shape[1] // some_lanes)]
        part = np.ascontiguousarray(part)
        scale = view.size / part.size
        lagged = strides if axis == 1 else ()
        present, bits = _model((part > 0).astype(np.int32), None, lagged, scale)
        if best is None or bits < best.bits:
            best = Plan(axis, below, present, None, bits)
            winner, ratio, steps = part, scale, lagged
    if best is None:
        return None
    others = winner > 0
    bits, upper = best.bits, None
    if 0 < below < size - 1:
        upper, more = _model((winner > below).astype(np.int32), others, steps, ratio)
        bits += more
    bits += ratio * adaptive_bits(winner[others & (winner <= below)] - 1, max(1, below))
    bits += ratio * adaptive_bits(winner[winner > below] - 1 - below, max(1, size - 1 - below))
    return Plan(best.axis, below, best.present, upper, bits)


def write(plan: Plan, symbols: Symbols, size: int, encoder: Encoder) -> bytes:
    """Code a matrix (rows, columns); returns the side information."""
    view = np.ascontiguousarray(symbols if plan.axis == 0 else symbols.T)
    present = view > 0
    _write_plane(plan.present, present.astype(np.int32), None, encoder)
    side = _stored(plan.present)
    if plan.upper is not None:
        _write_plane(plan.upper, (view > plan.below).astype(np.int32), present, encoder)
        side += _stored(plan.upper)
    flat = view.reshape(-1)
    encoder.adaptive(flat[(flat > 0) & (flat <= plan.below)] - 1, max(1, plan.below))
    encoder.adaptive(flat[flat > plan.below] - 1 - plan.below, max(1, size - 1 - plan.below))
    return side


def read(
    shape: tuple[int, int], axis: int, size: int, below: int, side: varint.Reader, decoder: Decoder
) -> NDArray[np.int32]:
    """The inverse of `write`.

    Raises:
        PareError: the file is damaged.
    """
    turned = shape if axis == 0 else shape[::-1]
    if not allowed(turned[0], turned[0] * turned[1]):
        raise PareError(f"a matrix of {turned[0]} steps cannot be coded this way")
    found = _read_plane(_restored(side), turned, None, decoder)
    present = found > 0
    upper = present & (below == 0)
    if 0 < below < size - 1:
        upper = _read_plane(_restored(side), turned, present, decoder) > 0
    lower = present & ~upper
    found[lower] = 1 + decoder.adaptive(int(lower.sum()), max(1, below))
    found[upper] = 1 + below + decoder.adaptive(int(upper.sum()), max(1, size - 1 - below))
    return found if axis == 0 else np.ascontiguousarray(found.T)


def _write_plane(mix: Mix, plane: Ints, coded: Flags | None, encoder: Encoder) -> None:
    weights = np.array(mix.weights, dtype=np.int32)
    for rows, ones in mixing.feature_blocks(mix.lags, plane, coded):
        encoder.binary(ones, mixing.chances(rows, weights))


def _read_plane(mix: Mix, shape: tuple[int, int], coded: Flags | None, decoder: Decoder) -> Ints:
    plane = np.zeros(shape, dtype=np.int32)

    def code(step: int, where: Where, chance: Chances) -> Ints:
        found = decoder.binary(chance)
        plane[step, where] = found
        return found

    mixing.walk(mix, shape, coded, code)
    return plane


def _stored(mix: Mix) -> bytes:
    """Number of lags, lags, weights (zigzag), as varints."""
    return varint.put([len(mix.lags), *mix.lags, *map(varint.unsigned, mix.weights)])


def _restored(side: varint.Reader) -> Mix:
    count = side.number()
    if count > MOST_LAGS:
        raise PareError(f"{count} lags are more than the {MOST_LAGS} allowed")
    lags = side.numbers(count)
    weights = [varint.signed(number) for number in side.numbers(4 + count)]
    if any(not 1 <= lag <= FARTHEST for lag in lags) or any(abs(w) > mixing.LARGEST_WEIGHT for w in weights):
        raise PareError("the weights of a mixed code make no sense")
    return Mix(tuple(lags), tuple(weights))


def _model(plane: Ints, coded: Flags | None, strides: tuple[int, ...], scale: float) -> tuple[Mix, float]:
    """The model of a plane and its length in bits, both from a sample that stands for `scale` times as much."""
    lags = _lags(plane, coded, strides)
    features, ones = mixing.features(lags, plane, coded)
    weights, worth = mixing.fit(features, ones)
    pays = worth > (_WORTH if scale == 1 else max(_NOISE, _WORTH / scale))
    kept = [k for k in range(4, len(weights)) if pays[k]]
    if len(kept) < len(lags) and pays[2]:  # `near` looks at the lags that are left
        features, ones = mixing.features(tuple(lags[k - 4] for k in kept), plane, coded)
    else:
        features = features[[0, 1, 2, 3, *kept]]
    used = [0, 1, *(k for k in (2, 3) if pays[k]), *range(4, 4 + len(kept))]
    final = np.zeros(4 + len(kept), dtype=np.int32)
    final[used], _ = mixing.fit(features[used], ones, weights[[0, 1, 2, 3, *kept]][used])
    mix = Mix(tuple(lags[k - 4] for k in kept), tuple(final.tolist()))
    return mix, scale * binary_bits(ones, mixing.chances(features, final)) + 8 * len(_stored(mix))


def _lags(plane: Ints, coded: Flags | None, strides: tuple[int, ...]) -> tuple[int, ...]:
    """The distances between steps at which ones meet ones more (or less) often than by chance; nearest first."""
    steps = len(plane)
    signs = 2 * plane.astype(np.int8) - 1
    if coded is not None:
        signs *= coded
    width = plane.shape[1]
    sums = signs.sum(1, dtype=np.int64)
    near = {lag for s in strides for lag in (s - 1, s, s + 1, 2 * s)} | set(range(1, 65))
    scores: dict[int, float] = {}
    for lag in sorted(lag for lag in near if 1 <= lag < steps):
        pair = signs[lag:] * signs[:-lag]
        met = int(pair.sum(dtype=np.int64))
        chance = float((sums[lag:] * sums[:-lag]).sum()) / width if coded is None else 0.0
        scores[lag] = abs(met - chance) / (1.0 + float(np.count_nonzero(pair))) ** 0.5
    best = sorted(scores, key=lambda lag: -scores[lag])[:MOST_LAGS]
    return tuple(sorted(best))
