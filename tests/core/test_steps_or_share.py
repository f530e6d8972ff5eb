"""Lengths that nobody gave: the usual one, or in short trainings a share of a round."""

from __future__ import annotations

import pytest

from paring.core import Clock, steps_or_share


@pytest.mark.parametrize(
    ("steps", "epoch_steps", "usual", "wanted"),
    [
        (10_000, None, 100, 100),
        (1_000, None, 100, 50),
        (10, None, 100, 1),
        (None, 10, 100, 100),
        (1_000, 10, "2ep", 20),
        (100, 50, "2ep", 5),
        (100, None, "2ep", 5),
        (None, 7, "2ep", 14),
    ],
)
def test_the_usual_length_or_a_twentieth(
    steps: int | None, epoch_steps: int | None, usual: str | int, wanted: int
) -> None:
    clock = Clock(0, 0, steps, epoch_steps)
    assert steps_or_share("X(every=...)", None, clock, usual=usual, share=1 / 20) == wanted


def test_what_was_given_counts_and_the_least_is_kept() -> None:
    clock = Clock(0, 0, 10, 5)
    assert steps_or_share("X", "3ep", clock, usual=1, share=0.1) == 15
    assert steps_or_share("X", None, clock, usual="1ep", share=0.01, least=0) == 0
    assert steps_or_share("X", None, clock, usual="1ep", share=0.01) == 1
    with pytest.raises(ValueError, match="tell attach the length of training"):
        steps_or_share("X", None, Clock(), usual="1ep", share=0.1)
