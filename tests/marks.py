"""Marks for tests that are about something else than what `paring` says of unfinished business."""

from __future__ import annotations

import pytest

BY_HAND = pytest.mark.filterwarnings(r"ignore:(L0\(price=0\)|run\.step was never called):paring.ParingWarning")
"""Gates are set by hand: nothing is charged, nothing is trained."""

CUT_SHORT = pytest.mark.filterwarnings(
    r"ignore:(training ended at|L0 holds its gates|L0 closed gates in one blow|L0 opened gates again|Shrink\(every=|\w+ has \d+ rounds):paring.ParingWarning"
)
"""Training is stopped early, or so short that a budget closes much at once."""
