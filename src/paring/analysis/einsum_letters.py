"""Equations of `einsum`: which letters there are, and how many products are added up on the way to the result."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod


def contractions(equation: str, shapes: Sequence[tuple[int, ...]], path: Sequence[int] | None = None) -> int:
    """Multiplications that end in a sum: for each step one for every combination of the letters of both operands.

    Operands are taken from left to right, or pair by pair as `path` says (positions, the result is put last). A step
    that sums nothing multiplies entry by entry and counts 0, as any product of two activations does.
    """
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    terms = [_letters(term, len(shape)) for term, shape in zip(inputs.split(","), shapes, strict=True)]
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    every = [letter for term in terms for letter in term]
    result = set(_letters(out, len(out) - 3 + _most_dots(terms)) if "..." in out else out)
    if not arrow:
        result = {letter for letter in every if letter.startswith(".") or every.count(letter) == 1}
    left, macs = [set(term) for term in terms], 0
    steps = list(path) if path is not None else [0, 1] * (len(left) - 1)
    for i, j in zip(steps[::2], steps[1::2], strict=True):
        both = left[i] | left[j]
        left = [term for at, term in enumerate(left) if at not in (i, j)]
        kept = both & result.union(*left)
        macs += prod(sizes[letter] for letter in both) if both - kept else 0
        left.insert(0 if path is None else len(left), kept)
    return macs


def _letters(term: str, dims: int) -> list[str]:
    """One name per dimension; those behind an ellipsis are counted from the right."""
    before, dots, after = term.partition("...")
    many = dims - len(before) - len(after) if dots else 0
    return [*before, *(f".{many - place}" for place in range(many)), *after]


def _most_dots(terms: Sequence[Sequence[str]]) -> int:
    return max((sum(letter.startswith(".") for letter in term) for term in terms), default=0)
