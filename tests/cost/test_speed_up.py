"""Comparing times: pre-empted samples move nothing, and noise is called noise."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from paring.cost import Comparison, Latency, compare, compare_times, latency


class Clock:
    """Stands for the module `time`: the clock and this thread's time stand still but for what networks take."""

    def __init__(self) -> None:
        self.now = self.cpu = 0.0

    def perf_counter(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.cpu

    def take(self, seconds: float, paused: float = 1.0) -> None:
        """Compute for so long, and wait so that it all lasts `paused` times as long."""
        self.cpu += seconds
        self.now += paused * seconds


class Takes(nn.Module):
    """A pass takes this long, and `pause(which)` times that by the clock in the pass with that number."""

    def __init__(self, clock: Clock, seconds: float, pause: Callable[[int], float] = lambda _: 1.0) -> None:
        super().__init__()
        self.clock, self.seconds, self.pause, self.passes = clock, seconds, pause, 0

    def forward(self, x: Tensor) -> Tensor:
        self.clock.take(self.seconds, self.pause(self.passes))
        self.passes += 1
        return x


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(sys.modules["paring.cost.latency"], "time", found)  # `paring.cost.latency` is the function
    return found


def timed(first: nn.Module, second: nn.Module, repeats: int = 30, **options: int) -> tuple[Latency, Latency]:
    times = latency({"first": first, "second": second}, torch.zeros(1), repeats=repeats, warmup=0, **options)
    return times["first"], times["second"]


@pytest.mark.parametrize("which", [9, 10, 30, 38])  # 3 passes to find out how many make a sample, then one each
def test_one_pre_empted_sample_moves_nothing(clock: Clock, which: int) -> None:
    first, second = Takes(clock, 3e-3), Takes(clock, 3e-3, lambda number: 20.0 if number == which else 1.0)
    a, b = timed(first, second, repeats=36)
    assert max(b.runs) == pytest.approx(0.06)
    assert b.median_s == pytest.approx(3e-3)
    found = compare(a, b)
    assert found.clear
    assert (found.by, str(found)) == ("clock", "1.00×")
    assert (found.low, found.ratio, found.high) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_pause_while_finding_the_length_of_a_sample_does_not_shorten_it(clock: Clock, which: int) -> None:
    net = Takes(clock, 1e-4, lambda number: 100.0 if number == which else 1.0)
    timed(Takes(clock, 1e-4), net, repeats=1)
    assert net.passes > 32  # 2 ms of 0.1 ms, to the next power of two


def test_where_most_samples_are_pre_empted_cpu_time_says_it(clock: Clock) -> None:
    draw = random.Random(0)

    def pause(_: int) -> float:
        return draw.choice([1.0, 2.0, 9.0, 20.0])

    a, b = timed(Takes(clock, 6e-3, pause), Takes(clock, 3e-3, pause))
    assert not compare_times(a.runs, b.runs).clear
    found = compare(a, b)
    assert (found.by, found.ratio, str(found)) == ("CPU time", pytest.approx(2.0), "2.00× in CPU time")
    a, b = timed(Takes(clock, 6e-3, pause), Takes(clock, 3e-3, pause), threads=2)  # threads that wait use the CPU
    assert a.cpu == ()
    found = compare(a, b)
    assert not found.clear
    assert found.said is None
    assert str(found) == f"too noisy to say ({found.low:.2f}× to {found.high:.2f}×)"
    assert found.low < 1 < found.high


def test_what_can_be_said() -> None:
    assert Comparison(1.02, 0.98, 1.07).clear  # known to 10 %
    assert not Comparison(1.1, 0.98, 1.2).clear  # perhaps no difference
    assert not Comparison(1.2, 1.05, 1.3).clear  # near no difference
    assert Comparison(1.4, 1.2, 1.7).clear  # a difference, known to a factor 1.5
    assert Comparison(0.7, 0.6, 0.85).clear
    assert not Comparison(3.0, 2.0, 4.0).clear  # a difference, but which?
    assert not Comparison(0.0, 0.0, 1.0).clear


def test_the_interval_holds_the_median() -> None:
    """The median of the distribution lies outside in 1 % of all cases (here of 2,000: 20, and not 60)."""
    draw, outside = random.Random(0), 0
    for _ in range(2000):
        found = compare_times([draw.lognormvariate(0, 0.3) for _ in range(30)], [1.0] * 30)
        outside += not found.low <= 1.0 <= found.high
    assert 0 < outside <= 30
    ladder = compare_times([float(i) for i in range(1, 31)], [1.0] * 30)
    assert (ladder.low, ladder.high) == (8.0, 23.0)  # fewer than 8 of 30 below the median: 0.26 %; fewer than 9: 0.81 %
    few = compare_times([1.0, 2.0, 5.0], [1.0, 1.0, 1.0])
    assert (few.low, few.ratio, few.high) == (1.0, 2.0, 5.0)


def test_what_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="2 and 1 runs"):
        compare_times([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="0 and 0 runs"):
        compare_times([], [])


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that keep the machine busy."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in spinning:
            one.kill()
            one.wait()


def test_the_same_module_twice_beside_busy_processes() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    with neighbours(2):
        times = latency({"one": net, "again": net}, torch.randn(8, 64), repeats=30)
    said = compare(times["one"], times["again"]).said
    assert said is None or 0.9 < said < 1.1
