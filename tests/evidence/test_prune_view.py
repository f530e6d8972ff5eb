"""Paired differences of the table of `bench prune`."""

from __future__ import annotations

import math
import statistics

from evidence.views.prune_views import difference, sentences_view
from paring.cli.results import Results


def rows(*errors: float) -> list[dict[str, float]]:
    return [{"seed": seed, "error": error} for seed, error in enumerate(errors)]


def test_a_difference_is_paired_and_bold_when_it_excludes_zero() -> None:
    found = [-1.0, -1.2, -0.9]
    half = 4.303 * statistics.stdev(found) / math.sqrt(3)
    assert difference(rows(9, 8.8, 9.1), rows(10, 10, 10)) == f"**−1.03 ± {half:.2f}**"
    assert difference(rows(9, 11), rows(10, 10)) == "+0.00 ± 12.71"
    assert difference(rows(9.5), rows(10, 10)) == "−0.50 (one seed)"
    assert difference([], rows(10)) == "–"


def test_only_the_same_seeds_are_paired() -> None:
    assert difference([{"seed": 5, "error": 1.0}], rows(2.0)) == "–"


def test_sentences_are_compared_by_their_cosines() -> None:
    def row(method: str, seed: int, cosine: float) -> dict[str, object]:
        numbers = {"cut_cosine": 0.5, "cosine": cosine, "rank_correlation": 0.8, "neighbours": 0.6}
        return {
            "source": "measured",
            "method": method,
            "budget": 0.6,
            "seed": seed,
            "parameters": 7,
            "search_cpu_seconds": 3.4,
            **numbers,
        }

    told = sentences_view(Results("prune-sentences", "bench", [row("paring", 0, 0.95), row("uniform", 0, 0.9)]))
    assert "| 60 % | uniform | 0.500 | 0.900 | 0.800 | 0.600 | +0.050 (one seed) | 7 | 3 |" in told
