"""All networks of sign units of given widths, up to what makes no difference: a proof that none fits, or one that does.

What a layer can output on the examples is a choice of linearly separable dichotomies of what the layer below outputs
(`paring.hard.dichotomies`). Opposite dichotomies, the order of units and constant units make no difference to the layer
above, and more distinct units never hurt, so the choices to try are the sets of as many nonconstant dichotomies as there
are units, up to sign. A set that outputs the same for two examples of contrary targets is ruled out by that alone;
what remains is decided layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from paring.hard.dichotomies import dichotomies
from paring.hard.exact import Plane
from paring.hard.feasible import certify
from paring.hard.outcome import Patterns


class LimitError(Exception):
    """More to enumerate than was allowed."""


@dataclass
class Count:
    """What an enumeration has done.

    Args:
        limit: decisions of separability that are allowed, and a hundred times as many sets.
        decisions: so far.
        networks: sets of hidden patterns that were ruled out.
    """

    limit: int
    decisions: int = 0
    networks: int = 0
    _known: dict[tuple[bytes, bytes], bool] = field(default_factory=dict)

    def separable(self, points: NDArray[np.float64], labels: Patterns) -> bool:
        """Whether the nonzero labels are, exactly."""
        key = (points.tobytes(), labels.tobytes())
        if key not in self._known:
            self.spend(1)
            used = labels != 0
            self._known[key] = not used.any() or isinstance(certify(points[used], labels[used]), Plane)
        return self._known[key]

    def spend(self, decisions: int) -> None:
        """Count them.

        Raises:
            LimitError: there are too many now.
        """
        self.decisions += decisions
        if self.decisions > self.limit:
            raise LimitError

    def afford(self, columns: int, size: int) -> None:
        """Refuse more than a hundred times as many sets of so many columns as decisions are allowed.

        Raises:
            LimitError: there are more.
        """
        if size <= columns and comb(columns, size) > 100 * self.limit:
            raise LimitError


def enumerate_hidden(
    points: NDArray[np.float64], targets: Patterns, widths: Sequence[int], count: Count
) -> tuple[Patterns, ...] | None:
    """Hidden patterns, layer by layer, with which the targets are linearly separable; None when there are none.

    Args:
        points: (N, d).
        targets: (N, outputs) of -1, 0, +1.
        widths: units of the hidden layers.
        count: counts, and limits.

    Raises:
        LimitError: the limit was reached first.
    """
    if not widths:
        return () if all(count.separable(points, column) for column in targets.T) else None
    columns = []
    for labels in dichotomies(points):
        count.spend(1)
        if (labels < 0).any():
            columns.append(labels)
            count.afford(len(columns), widths[0])
    columns = columns or [np.ones(len(points), dtype=np.int8)]
    for chosen in _sets(columns, targets, min(widths[0], len(columns)), count):
        padded = [columns[i] for i in chosen] + [columns[chosen[0]]] * (widths[0] - len(chosen))
        outputs = np.stack(padded, axis=1)
        above = enumerate_hidden(outputs.astype(np.float64), targets, widths[1:], count)
        if above is not None:
            return (outputs, *above)
        count.networks += 1
    return None


def _sets(columns: list[Patterns], targets: Patterns, size: int, count: Count) -> Iterator[tuple[int, ...]]:
    """Sets of columns that tell every two examples of contrary targets apart."""
    contrary = np.zeros((len(targets), len(targets)), dtype=bool)
    for column in targets.T:
        contrary |= np.multiply.outer(column, column) < 0
    first, second = np.nonzero(np.triu(contrary))
    told = [int("".join("01"[int(v)] for v in column[first] != column[second]) or "0", 2) for column in columns]
    everything = (1 << len(first)) - 1
    for chosen in combinations(range(len(columns)), size):
        together = 0
        for index in chosen:
            together |= told[index]
        if together == everything:
            yield chosen
        else:
            count.networks += 1
