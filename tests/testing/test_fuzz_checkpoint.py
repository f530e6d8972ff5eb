"""A short run of the fuzzer over checkpoints; `python -m paring.testing.fuzz checkpoint` is the long one."""

from __future__ import annotations

from paring.testing.fuzz import campaign, made, sown


def test_changed_checkpoints_end_in_the_same_state_or_one_error() -> None:
    checkpoints = made("checkpoint")
    for counts in (campaign(checkpoints, cases=100), sown(checkpoints, every=211)):
        assert counts.failing == []
        assert counts.outcomes["refused"] > counts.cases / 2
