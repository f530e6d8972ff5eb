"""Feasible target propagation, Algorithm 1 of Friesen and Domingos (ICLR 2018, arXiv 1710.11573), for small networks.

A network of sign units has no error when every unit, the outputs and the hidden ones, can output its targets given
what the layer below outputs. So a layer of given targets asks: are they linearly separable, unit by unit? If so it is
done. If not, and there is a layer below, that gets other targets, by the heuristic of `paring.hard.proposals`, and asks
the same of itself; the layer tries again with what comes back. Out of proposals, it reports back that its targets are
infeasible, and the layer above proposes others.

What the paper leaves open is decided so:

* "separable" is decided by linear programming, and exactly for what is returned, instead of by training perceptrons;
* a layer keeps a beam of patterns that the layers below do realise, in order of its hinge loss, and never returns to
  one; the search starts again from other random weights when the beam is empty or its rounds are over;
* a budget of candidates for the whole search. When it is spent, all hidden patterns that the network can realise are
  enumerated if they are few (`paring.hard.exhaustive`), which proves that there is no such network, or finds it.

A network that is found has a margin in every unit; "infeasible" is proved; "not found" is neither.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from paring.hard.exhaustive import Count, LimitError, enumerate_hidden
from paring.hard.feasible import Inseparable, separate
from paring.hard.outcome import Found, Infeasible, NotFound, Outcome, Patterns, conflict, task, units
from paring.hard.proposals import Fitter, Reals, proposals

Weights = Sequence[tuple[ArrayLike, ArrayLike]]


class _SpentError(Exception):
    """The budget is."""


def ftprop(
    points: ArrayLike,
    targets: ArrayLike,
    hidden: Sequence[int],
    *,
    beam: int = 4,
    flips: int = 8,
    rounds: int = 12,
    budget: int = 2000,
    enumeration: int = 20_000,
    seed: int = 0,
    start: Weights | None = None,
) -> Outcome:
    """A network of sign units without an error on the examples, or a proof that there is none, or neither.

    Args:
        points: (N, d), the examples.
        targets: (N,) or (N, outputs) of +1, -1, and 0 where the output does not matter.
        hidden: widths of the hidden layers, none for a perceptron.
        beam: realised patterns that each layer keeps.
        flips: single flips among the proposals for each of them.
        rounds: of proposals before a layer gives up, halved with every layer below.
        budget: candidate patterns that the search may evaluate, by a linear programme for each unit above.
        enumeration: decisions of separability for the proof; 0 to leave it out.
        seed: of the random weights and proposals; the same seed gives the same outcome.
        start: weights (units, inputs) and biases of the hidden layers to start from, instead of random ones.

    Raises:
        ValueError: examples, targets, widths or numbers that make no problem.
        ImportError: scipy is missing.
    """
    x, t = task(points, targets)
    widths = _checked(hidden, beam=beam, flips=flips, rounds=rounds, budget=budget, enumeration=enumeration)
    clash = conflict(x, t)
    if clash is not None:
        return Infeasible("conflict", rows=clash)
    if not widths:
        for output, column in enumerate(t.T):
            verdict = separate(x, column)
            if isinstance(verdict, Inseparable):
                return Infeasible("inseparable", certificate=verdict, output=output, spent=output + 1)
        return Found(units(x, (), t), "search", t.shape[1])
    search = _Search(x, beam, flips, budget, np.random.default_rng(seed))
    patterns = search.run(t, widths, rounds, start)
    if patterns is not None:
        return Found(units(x, patterns, t), "search", search.fitter.spent)
    count = Count(enumeration)
    try:
        patterns = enumerate_hidden(x, t, widths, count)
    except LimitError:
        return NotFound(search.least, search.fitter.spent + count.decisions)
    spent = search.fitter.spent + count.decisions
    if patterns is None:
        return Infeasible("exhausted", networks=count.networks, spent=spent)
    return Found(units(x, patterns, t), "enumeration", spent)


def _checked(hidden: Sequence[int], **numbers: int) -> tuple[int, ...]:
    if not isinstance(hidden, Sequence) or isinstance(hidden, str):
        raise ValueError(f"hidden={hidden!r}: give a list of widths, such as [2] or [4, 2]; [] for a perceptron")
    widths = tuple(hidden)
    if any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in widths):
        raise ValueError(f"hidden={hidden!r}: widths are whole numbers, at least 1")
    for name, value in numbers.items():
        least = 0 if name in ("budget", "enumeration") else 1
        if value < least:
            raise ValueError(f"{name}={value}: must be at least {least}")
    return widths


class _Search:
    """The recursion; a chain is what the hidden layers output, layer by layer, realised by some weights."""

    def __init__(self, x: Reals, beam: int, flips: int, budget: int, rng: np.random.Generator) -> None:
        self.x = x
        self.beam = beam
        self.flips = flips
        self.budget = budget
        self.rng = rng
        self.fitter = Fitter()
        self.evaluated = 0
        self.least = float("inf")

    def run(
        self, t: Patterns, widths: tuple[int, ...], rounds: int, start: Weights | None
    ) -> tuple[Patterns, ...] | None:
        """Hidden patterns with which the targets are separable; None when the budget is spent."""
        chain = self._random(widths) if start is None else self._given(widths, start)
        try:
            while True:
                found = self._reach(t, chain, rounds, top=True)
                if found is not None:
                    return found
                chain = self._random(widths)
        except _SpentError:
            return None

    def _reach(
        self, targets: Patterns, chain: tuple[Patterns, ...], rounds: int, top: bool = False
    ) -> tuple[Patterns, ...] | None:
        """A chain near the given one on which the targets are separable, or None."""
        loss = self._loss(targets, chain, top)
        if loss == 0:
            return chain
        if not chain:
            return None
        kept, seen = [(loss, chain)], {chain[-1].tobytes()}
        for _ in range(rounds):
            fresh: list[tuple[float, tuple[Patterns, ...]]] = []
            for proposed, lower in self._ranked(targets, [chain for _, chain in kept], seen):
                realised = self._reach(proposed, lower, rounds // 2)
                if realised is None:
                    continue
                longer = (*realised, proposed)
                loss = self._loss(targets, longer, top)
                if loss == 0:
                    return longer
                fresh.append((loss, longer))
                if len(fresh) == self.beam:
                    break
            if not fresh:
                return None
            kept = sorted(fresh, key=lambda found: found[0])
        return None

    def _ranked(
        self, targets: Patterns, chains: list[tuple[Patterns, ...]], seen: set[bytes]
    ) -> list[tuple[Patterns, tuple[Patterns, ...]]]:
        """New targets for the layer below and what is below that, in order of the loss that they would leave."""
        found = []
        for chain in chains:
            below = self._values(chain[:-1])
            for proposed in proposals(self.fitter, below, chain[-1], targets, self.flips, self.rng):
                if proposed.tobytes() not in seen:
                    seen.add(proposed.tobytes())
                    found.append((self._loss(targets, (*chain[:-1], proposed)), proposed, chain[:-1]))
        found.sort(key=lambda candidate: candidate[0])
        return [(proposed, lower) for _, proposed, lower in found]

    def _loss(self, targets: Patterns, chain: tuple[Patterns, ...], top: bool = False) -> float:
        if self.evaluated >= self.budget:
            raise _SpentError
        self.evaluated += 1
        loss = self.fitter.loss(self._values(chain), targets)
        if top:
            self.least = min(self.least, loss)
        return loss

    def _values(self, chain: tuple[Patterns, ...]) -> Reals:
        return chain[-1].astype(np.float64) if chain else self.x

    def _random(self, widths: tuple[int, ...]) -> tuple[Patterns, ...]:
        chain: tuple[Patterns, ...] = ()
        for width in widths:
            below = self._values(chain)
            z = (below - below.mean(axis=0)) @ self.rng.standard_normal((below.shape[1], width))
            chain = (*chain, _signs(z - self.rng.uniform(-0.5, 0.5, width) * np.abs(z).max(axis=0)))
        return chain

    def _given(self, widths: tuple[int, ...], start: Weights) -> tuple[Patterns, ...]:
        chain: tuple[Patterns, ...] = ()
        layers = [(np.asarray(weight, dtype=np.float64), np.asarray(bias, dtype=np.float64)) for weight, bias in start]
        inputs = (self.x.shape[1], *widths[:-1])
        if [weight.shape for weight, _ in layers] != list(zip(widths, inputs, strict=True)):
            shapes = [weight.shape for weight, _ in layers]
            raise ValueError(
                f"start has weights of shapes {shapes}; the hidden layers need {list(zip(widths, inputs, strict=True))}"
            )
        for weight, bias in layers:
            chain = (*chain, _signs(self._values(chain) @ weight.T + bias))
        return chain


def _signs(z: Reals) -> Patterns:
    return np.where(z > 0, 1, -1).astype(np.int8)
