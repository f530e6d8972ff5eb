"""Naive twins of the relaxations: one gate at a time, plain floats, textbook densities, sums by Simpson's rule.

Good for moderate parameters only (|log_alpha| up to about 10): no care is taken about overflow or cancellation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def simpson(f: Callable[[float], float], low: float, high: float, steps: int = 2000) -> float:
    width = (high - low) / steps
    total = f(low) + f(high)
    for i in range(1, steps):
        total += f(low + i * width) * (4 if i % 2 else 2)
    return total * width / 3


def clip(x: float) -> float:
    return min(1.0, max(0.0, x))


class Clipped:
    """A density on the line, clipped to [0, 1]. Subclasses give pdf, cdf and the draw from uniform noise."""

    def __init__(self, **numbers: Any) -> None:
        self.__dict__.update(numbers)

    def pdf(self, x: float, log_alpha: float) -> float:
        raise NotImplementedError

    def cdf(self, x: float, log_alpha: float) -> float:
        raise NotImplementedError

    def draw(self, log_alpha: float, u: float) -> float:
        raise NotImplementedError

    def survival(self, x: float, log_alpha: float) -> float:
        return 1 - self.cdf(x, log_alpha)

    def sample(self, log_alpha: float, u: float) -> float:
        return clip(self.draw(log_alpha, u))

    def prob_open(self, log_alpha: float) -> float:
        return 1 - self.cdf(0.0, log_alpha)

    def mean(self, log_alpha: float) -> float:
        inner = simpson(lambda x: x * self.pdf(x, log_alpha), 0.0, 1.0)
        return inner + self.survival(1.0, log_alpha)

    def kl(self, log_alpha: float, prior: float) -> float:
        q0, p0 = self.cdf(0.0, log_alpha), self.cdf(0.0, prior)
        q1, p1 = self.survival(1.0, log_alpha), self.survival(1.0, prior)

        def between(x: float) -> float:
            q, p = self.pdf(x, log_alpha), self.pdf(x, prior)
            return q * math.log(q / p)

        return q0 * math.log(q0 / p0) + q1 * math.log(q1 / p1) + simpson(between, 0.0, 1.0)


class HardConcrete(Clipped):
    beta: float
    gamma: float
    zeta: float
    test: str

    def pdf(self, x: float, log_alpha: float) -> float:
        s = (x - self.gamma) / (self.zeta - self.gamma)
        alpha, b = math.exp(log_alpha), self.beta
        top: float = b * alpha * s ** (-b - 1) * (1 - s) ** (-b - 1)
        bottom: float = (alpha * s**-b + (1 - s) ** -b) ** 2
        return top / bottom / (self.zeta - self.gamma)

    def cdf(self, x: float, log_alpha: float) -> float:
        if x <= self.gamma:
            return 0.0
        if x >= self.zeta:
            return 1.0
        s = (x - self.gamma) / (self.zeta - self.gamma)
        return sigmoid(self.beta * (math.log(s) - math.log(1 - s)) - log_alpha)

    def draw(self, log_alpha: float, u: float) -> float:
        s = sigmoid((math.log(u) - math.log(1 - u) + log_alpha) / self.beta)
        return s * (self.zeta - self.gamma) + self.gamma

    def estimate(self, log_alpha: float) -> float:
        s = sigmoid(log_alpha) if self.test == "paper" else sigmoid(log_alpha / self.beta)
        return clip(s * (self.zeta - self.gamma) + self.gamma)


class Concrete(HardConcrete):
    threshold: float
    gamma, zeta = 0.0, 1.0

    def prob_open(self, log_alpha: float) -> float:
        return 1 - self.cdf(self.threshold, log_alpha)

    def estimate(self, log_alpha: float) -> float:
        median = self.draw(log_alpha, 0.5)
        return median if median > self.threshold else 0.0

    def mean(self, log_alpha: float) -> float:
        """Average over the noise y = logit(u): the integrand over x itself is infinite at the ends."""
        return simpson(lambda y: sigmoid((y + log_alpha) / self.beta) * sigmoid(y) * sigmoid(-y), -40.0, 40.0)

    def kl(self, log_alpha: float, prior: float) -> float:
        def at(y: float) -> float:
            log_q = -y - 2 * math.log(1 + math.exp(-y))
            shifted = y + log_alpha - prior
            log_p = -shifted - 2 * math.log(1 + math.exp(-shifted))
            return sigmoid(y) * sigmoid(-y) * (log_q - log_p)

        return simpson(at, -45.0, 45.0, 4000)


class RectifiedGaussian(Clipped):
    sigma: float

    def pdf(self, x: float, log_alpha: float) -> float:
        return math.exp(-(((x - log_alpha) / self.sigma) ** 2) / 2) / (self.sigma * math.sqrt(2 * math.pi))

    def cdf(self, x: float, log_alpha: float) -> float:
        return math.erfc((log_alpha - x) / self.sigma / math.sqrt(2)) / 2

    def survival(self, x: float, log_alpha: float) -> float:
        return math.erfc((x - log_alpha) / self.sigma / math.sqrt(2)) / 2

    def draw(self, log_alpha: float, u: float) -> float:
        low, high = log_alpha - 20 * self.sigma, log_alpha + 20 * self.sigma
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.cdf(middle, log_alpha) < u else (low, middle)
        return (low + high) / 2

    def estimate(self, log_alpha: float) -> float:
        return clip(log_alpha)


class RectifiedLogistic(Clipped):
    scale: float

    def pdf(self, x: float, log_alpha: float) -> float:
        f = self.cdf(x, log_alpha)
        return f * (1 - f) / self.scale

    def cdf(self, x: float, log_alpha: float) -> float:
        return sigmoid((x - log_alpha) / self.scale)

    def draw(self, log_alpha: float, u: float) -> float:
        return log_alpha + self.scale * (math.log(u) - math.log(1 - u))

    def estimate(self, log_alpha: float) -> float:
        return clip(log_alpha)


class StraightThroughBernoulli:
    def __init__(self, **numbers: Any) -> None:
        self.__dict__.update(numbers)

    def cdf(self, x: float, log_alpha: float) -> float:
        if x < 0:
            return 0.0
        return 1 - sigmoid(log_alpha) if x < 1 else 1.0

    def sample(self, log_alpha: float, u: float) -> float:
        return 1.0 if u > 1 - sigmoid(log_alpha) else 0.0

    def prob_open(self, log_alpha: float) -> float:
        return sigmoid(log_alpha)

    def estimate(self, log_alpha: float) -> float:
        return 1.0 if sigmoid(log_alpha) > 0.5 else 0.0

    def mean(self, log_alpha: float) -> float:
        return sigmoid(log_alpha)

    def kl(self, log_alpha: float, prior: float) -> float:
        q, p = sigmoid(log_alpha), sigmoid(prior)
        return q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))


def twin(gate: Any) -> Any:
    """The naive twin of a relaxation, with the same numbers in it."""
    return globals()[type(gate).__name__](**vars(gate))


def expected_l0(chance: list[float], size: list[float]) -> float:
    total = 0.0
    for p, n in zip(chance, size, strict=True):
        total += p * n
    return total


def expected_l2(chance: list[float], weights: list[list[float]]) -> float:
    total = 0.0
    for p, group in zip(chance, weights, strict=True):
        for w in group:
            total += p * w * w / 2
    return total


def spike_and_slab(gate_kl: list[float], chance: list[float], slab_kl: list[float]) -> float:
    total = 0.0
    for k, p, s in zip(gate_kl, chance, slab_kl, strict=True):
        total += k + p * s
    return total
