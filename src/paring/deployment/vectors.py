"""The innermost loops of sparse layers, written as LLVM because numba has no words for vectors.

One row of a sparse matrix times many columns of a dense one. Columns come in vectors of 8 neighbours that may lie anywhere;
up to 8 of them stay in registers, and each weight that is not zero costs a look-up of where its numbers lie and, per
vector, one fused multiply-add. Where there are fewer vectors several weights are taken at once, so that there are always
eight chains of additions.

numba's cache of compiled code follows the file of the kernels, not this one: after a change here, touch that file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WIDTH = 8
_CHAINS = 8
_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR, _EVERYWHERE = ir.VectorType(_F32, WIDTH), ir.Constant(ir.VectorType(_I32, WIDTH), None)
_FUSED = ("contract",)


class _Code:
    """Instructions of one intrinsic: its arguments, arrays as pointers to their first entry."""

    def __init__(self, target: Any, builder: Any, signature: Any, args: Sequence[Any]) -> None:
        self.builder = builder
        self.args = [
            target.make_array(kind)(target, builder, value).data if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, args, strict=True)
        ]

    def number(self, value: int) -> Any:
        return ir.Constant(_I64, value)

    def add(self, a: Any, b: Any) -> Any:
        return self.builder.add(a, self.number(b) if isinstance(b, int) else b)

    def at(self, base: Any, index: Any) -> Any:
        return self.builder.load(self.builder.gep(base, [index]))

    def place(self, base: Any, offset: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(base, [offset]), _VECTOR.as_pointer())

    def spread(self, value: Any) -> Any:
        nothing = ir.Constant(_VECTOR, ir.Undefined)
        single = self.builder.insert_element(nothing, value, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(single, nothing, _EVERYWHERE)

    def rooms(self, kind: Any, first: Any, count: int, many: int) -> list[list[Any]]:
        """`count` chains of `many` sums; those of the first chain begin at `first`, the others at zero."""
        found = [[cgutils.alloca_once(self.builder, kind) for _ in range(many)] for _ in range(count)]
        for number, chain in enumerate(found):
            for room in chain:
                self.builder.store(ir.Constant(kind, None) if number else first, room)
        return found

    def fused(self, room: Any, weight: Any, numbers: Any) -> None:
        product = self.builder.fmul(weight, numbers, flags=_FUSED)
        self.builder.store(self.builder.fadd(self.builder.load(room), product, flags=_FUSED), room)

    def total(self, rooms: Sequence[Any]) -> Any:
        first, *others = (self.builder.load(room) for room in rooms)
        for other in others:
            first = self.builder.fadd(first, other)
        return first

    def repeat(self, start: Any, stop: Any, step: int, body: Callable[[Any, int], None]) -> None:
        """body(k, chain) for start <= k < stop, `step` of them in a row in chains of their own."""
        builder = self.builder
        rounds = builder.udiv(builder.sub(stop, start), self.number(step))
        with cgutils.for_range(builder, rounds) as loop:
            first = self.add(start, builder.mul(loop.index, self.number(step)))
            for chain in range(step):
                body(self.add(first, chain), chain)
        rest = self.add(start, builder.mul(rounds, self.number(step)))
        with cgutils.for_range(builder, builder.sub(stop, rest)) as loop:
            body(self.add(rest, loop.index), 0)


def _dot_code(context: Any, x: Any, taps: Any, values: Any, start: Any, stop: Any, bias: Any) -> Any:
    """The sum of bias and values[k] x[taps[k]], start <= k < stop."""

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = _Code(target, builder, signature, args)
        x, taps, values, start, stop, bias = code.args
        sums = code.rooms(_F32, bias, _CHAINS, 1)

        def weight(k: Any, chain: int) -> None:
            number = code.at(x, builder.zext(code.at(taps, k), _I64))
            code.fused(sums[chain][0], code.at(values, k), number)

        code.repeat(start, stop, _CHAINS, weight)
        return code.total([chain[0] for chain in sums])

    return types.float32(x, taps, values, start, stop, bias), generate


def _columns(vectors: int) -> Any:
    """Intrinsic: a row times `vectors` times 8 columns.

    out[put + puts[first + v] + j] = bias + Σ_k values[k] x[at + ats[first + v] + table[taps[k]] + j], start <= k < stop, j < 8.
    """

    def row(
        context: Any, x: Any, at: Any, ats: Any, first: Any, table: Any, taps: Any, values: Any, start: Any, stop: Any,
        bias: Any, out: Any, put: Any, puts: Any,
    ) -> Any:  # fmt: skip
        def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
            code = _Code(target, builder, signature, args)
            x, at, ats, first, table, taps, values, start, stop, bias, out, put, puts = code.args
            sums = code.rooms(_VECTOR, code.spread(bias), _CHAINS // vectors, vectors)
            begins = [builder.gep(x, [builder.add(at, code.at(ats, code.add(first, v)))]) for v in range(vectors)]

            def weight(k: Any, chain: int) -> None:
                offset = code.at(table, builder.zext(code.at(taps, k), _I64))
                value = code.spread(code.at(values, k))
                for room, begin in zip(sums[chain], begins, strict=True):
                    code.fused(room, value, builder.load(code.place(begin, offset), align=4))

            code.repeat(start, stop, len(sums), weight)
            for v in range(vectors):
                place = code.place(out, builder.add(put, code.at(puts, code.add(first, v))))
                builder.store(code.total([chain[v] for chain in sums]), place, align=4)
            return target.get_dummy_value()

        given = (x, at, ats, first, table, taps, values, start, stop, bias, out, put, puts)
        return types.void(*given), generate

    return intrinsic(row)


def _move_code(context: Any, x: Any, at: Any, out: Any, put: Any) -> Any:
    """out[put + j] = x[at + j], j < 8."""

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = _Code(target, builder, signature, args)
        x, at, out, put = code.args
        builder.store(builder.load(code.place(x, at), align=4), code.place(out, put), align=4)
        return target.get_dummy_value()

    return types.void(x, at, out, put), generate


dot, move = intrinsic(_dot_code), intrinsic(_move_code)
columns1, columns2, columns4, columns8 = (_columns(vectors) for vectors in (1, 2, 4, 8))
