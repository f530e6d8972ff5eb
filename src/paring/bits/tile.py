"""What numba has no words for, written as LLVM: the innermost loop of the kernels, and 64 comparisons at a time.

The tile holds the counts of 3 rows times 64 channels in 24 registers of 512 bits: per vector of 8 weights an xor, a
popcount and an addition, nothing crosses lanes. Without AVX-512 it holds 1 row times 32 channels, and LLVM writes the
popcount as table look-ups where there is no instruction.

numba's cache of compiled code follows the file of the kernels, not this one: after a change here, touch that file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WORD = 64
_WIDE = bool(llvmlite.binding.get_host_cpu_features().get("avx512f", False))
ROWS, VECTORS = (3, 8) if _WIDE else (1, 4)
LANES = 8 * VECTORS
_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_V8, _H8 = ir.VectorType(_I64, 8), ir.VectorType(_I32, 8)
_D8, _R8 = ir.VectorType(ir.DoubleType(), 8), ir.VectorType(_F32, 8)


def _vector(builder: Any, base: Any, offset: Any, kind: Any) -> Any:
    """Pointer to a vector at an offset in elements."""
    return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())


def _tile(rows: int) -> Any:
    """Intrinsic: counts of `rows` rows times `LANES` channels."""

    def count(
        context: Any, x: Any, at: Any, row: Any, plane: Any, planes: Any, words: Any, first: Any, size: Any,
        counts: Any, put: Any,
    ) -> Any:  # fmt: skip
        def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
            def data(index: int) -> Any:
                return target.make_array(signature.args[index])(target, builder, args[index]).data

            def number(value: int) -> Any:
                return ir.Constant(_I64, value)

            x, words, counts = data(0), data(5), data(8)
            at, row, plane, planes, first, size, put = (args[i] for i in (1, 2, 3, 4, 6, 7, 9))
            ones = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_V8, [_V8]), "llvm.ctpop.v8i64")
            sums = [
                [cgutils.alloca_once_value(builder, ir.Constant(_V8, None)) for _ in range(VECTORS)]
                for _ in range(rows)
            ]
            nothing, everywhere = ir.Constant(_V8, ir.Undefined), ir.Constant(_H8, None)
            with cgutils.for_range(builder, planes) as outer:
                start = builder.add(at, builder.mul(outer.index, plane))
                with cgutils.for_range(builder, size) as loop:
                    k = loop.index
                    spread = []
                    for r in range(rows):
                        offset = builder.add(builder.add(start, builder.mul(row, number(r))), k)
                        word = builder.load(builder.gep(x, [offset]))
                        single = builder.insert_element(nothing, word, ir.Constant(_I32, 0))
                        spread.append(builder.shuffle_vector(single, nothing, everywhere))
                    lane = builder.add(first, builder.mul(k, number(WORD)))
                    for v in range(VECTORS):
                        weights = builder.load(_vector(builder, words, builder.add(lane, number(8 * v)), _V8), align=8)
                        for r in range(rows):
                            more = builder.call(ones, [builder.xor(spread[r], weights)])
                            builder.store(builder.add(builder.load(sums[r][v]), more), sums[r][v])
            for r in range(rows):
                for v in range(VECTORS):
                    place = _vector(builder, counts, builder.add(put, number(WORD * r + 8 * v)), _H8)
                    builder.store(builder.trunc(builder.load(sums[r][v]), _H8), place, align=4)
            return target.get_dummy_value()

        return types.void(x, at, row, plane, planes, words, first, size, counts, put), generate

    return intrinsic(count)


def _compared(test: Callable[[Any, list[Any]], Any], kind: Any) -> Callable[..., Any]:
    """Code of a comparison of 64 neighbours in arrays, each followed by an offset: an int64 of 64 results."""

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        loaded = []
        for index in range(0, len(args), 2):
            base = target.make_array(signature.args[index])(target, builder, args[index]).data
            loaded.append(builder.load(_vector(builder, base, args[index + 1], kind), align=4))
        return builder.bitcast(test(builder, loaded), _I64)

    return lambda *given: (types.int64(*given), generate)


_SMALL, _REAL = ir.VectorType(_I32, WORD), ir.VectorType(_F32, WORD)
_below = _compared(lambda builder, v: builder.icmp_signed("<=", v[0], v[1]), _SMALL)
_inside = _compared(lambda builder, v: _between(builder, *v), _REAL)


def _between(builder: Any, x: Any, low: Any, high: Any) -> Any:
    return builder.and_(builder.fcmp_ordered(">=", x, low), builder.fcmp_ordered("<=", x, high))


def _below_code(context: Any, counts: Any, c: Any, limits: Any, t: Any) -> Any:
    """64 bits: counts[c + j] <= limits[t + j]."""
    return _below(counts, c, limits, t)


def _inside_code(context: Any, x: Any, i: Any, low: Any, j: Any, high: Any, k: Any) -> Any:
    """64 bits: low[j + b] <= x[i + b] <= high[k + b]."""
    return _inside(x, i, low, j, high, k)


def _between_code(context: Any, x: Any, i: Any, low: Any, high: Any) -> Any:
    """64 bits: low <= x[i + b] <= high."""

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        nothing, everywhere = ir.Constant(_REAL, ir.Undefined), ir.Constant(_SMALL, None)
        base = target.make_array(signature.args[0])(target, builder, args[0]).data
        loaded = builder.load(_vector(builder, base, args[1], _REAL), align=4)
        bounds = (builder.insert_element(nothing, bound, ir.Constant(_I32, 0)) for bound in args[2:])
        spread = (builder.shuffle_vector(bound, nothing, everywhere) for bound in bounds)
        return builder.bitcast(_between(builder, loaded, *spread), _I64)

    return types.int64(x, i, low, high), generate


def _bring_code(
    context: Any, x: Any, at: Any, inner: Any, outer: Any, scratch: Any, put: Any, count: Any
) -> Any:  # fmt: skip
    """scratch[put + j] = x[at + j] for inner <= j < outer, 0 for the other j < count; one short loop without calls."""

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, goal = (target.make_array(signature.args[i])(target, builder, args[i]).data for i in (0, 4))
        at, inner, outer, put, count = (args[i] for i in (1, 2, 3, 5, 6))
        zero = ir.Constant(_I64, 0)
        with cgutils.for_range(builder, count) as loop:
            j = loop.index
            within = builder.and_(builder.icmp_signed(">=", j, inner), builder.icmp_signed("<", j, outer))
            word = builder.load(builder.gep(source, [builder.select(within, builder.add(at, j), zero)]))
            builder.store(builder.select(within, word, zero), builder.gep(goal, [builder.add(put, j)]))
        return target.get_dummy_value()

    return types.void(x, at, inner, outer, scratch, put, count), generate


def _scaled_code(
    context: Any, counts: Any, c: Any, base: Any, t: Any, each: Any, factor: Any, f: Any, shift: Any, s: Any,
    out: Any, o: Any,
) -> Any:  # fmt: skip
    """out[o + j] = float32(factor[f + j] (base[t + j] - each counts[c + j]) + shift[s + j]) of 64 j, in float64."""

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        def load(index: int, v: int, kind: Any, align: int) -> Any:
            base = target.make_array(signature.args[index])(target, builder, args[index]).data
            at = builder.add(args[index + 1], ir.Constant(_I64, 8 * v))
            return builder.load(_vector(builder, base, at, kind), align=align)

        nothing, everywhere = ir.Constant(_D8, ir.Undefined), ir.Constant(_H8, None)
        step = builder.shuffle_vector(
            builder.insert_element(nothing, args[4], ir.Constant(_I32, 0)), nothing, everywhere
        )
        goal = target.make_array(signature.args[9])(target, builder, args[9]).data
        for v in range(WORD // 8):
            count, start = (builder.sitofp(load(index, v, _H8, 4), _D8) for index in (0, 2))
            total = builder.fsub(start, builder.fmul(step, count))
            value = builder.fadd(builder.fmul(load(5, v, _D8, 8), total), load(7, v, _D8, 8))
            place = _vector(builder, goal, builder.add(args[10], ir.Constant(_I64, 8 * v)), _R8)
            builder.store(builder.fptrunc(value, _R8), place, align=4)
        return target.get_dummy_value()

    return types.void(counts, c, base, t, each, factor, f, shift, s, out, o), generate


many, single = _tile(ROWS), _tile(1)
below, inside, between = intrinsic(_below_code), intrinsic(_inside_code), intrinsic(_between_code)
bring, scaled = intrinsic(_bring_code), intrinsic(_scaled_code)
