"""Paired differences, their intervals, and the words that pages take from them."""

from __future__ import annotations

import math
import statistics

import pytest
from scipy import stats

from evidence.comparison import Difference, paired, told, upper_bound


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    ours, theirs = (9.0, 8.8, 9.1, 9.3), (10.0, 10.0, 9.5, 9.9)
    found = paired(by_seed(*ours), by_seed(*theirs))
    assert found is not None
    interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert math.isclose(found.mean - found.half, interval.low)
    assert math.isclose(found.mean + found.half, interval.high)
    assert found.seeds == 4


def test_only_the_same_seeds_are_paired() -> None:
    assert paired({5: 1.0}, {0: 2.0}) is None
    assert told({5: 1.0}, {0: 2.0}) == "–"
    assert paired({5: 1.0, 6: 2.0}, {6: 1.5}) == Difference(0.5, math.inf, 1)


@pytest.mark.parametrize(
    ("difference", "word", "text"),
    [
        (Difference(-1.0, 0.9, 3), "ahead", "**−1.00 ± 0.90**"),
        (Difference(1.0, 0.9, 3), "behind", "**+1.00 ± 0.90**"),
        (Difference(-1.0, 1.0, 3), "level", "−1.00 ± 1.00"),
        (Difference(0.0, 0.0, 3), "level", "+0.00 ± 0.00"),
        (Difference(-0.5, math.inf, 1), "level", "−0.50 (one seed)"),
    ],
)
def test_the_word_follows_from_the_interval(difference: Difference, word: str, text: str) -> None:
    assert difference.word == word
    assert difference.told() == text


def test_the_upper_bound_is_one_sided() -> None:
    values = (0.1, -0.2, 0.3, 0.0, 0.2)
    by_hand = statistics.fmean(values) + stats.t.ppf(0.95, 4) * statistics.stdev(values) / math.sqrt(5)
    assert math.isclose(upper_bound(values), by_hand)
    assert upper_bound((0.1,)) == math.inf
