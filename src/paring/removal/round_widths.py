"""Widths that hardware likes: some dead units stay, so that layers keep a multiple of so many units."""

from __future__ import annotations

from paring.analysis.interpret import Interpretation
from paring.analysis.state import Liveness


def round_up(analysis: Interpretation, liveness: Liveness, multiple_of: int) -> None:
    """Keep dead units until every layer that loses some has a multiple of `multiple_of` left, or at most half of it.

    They are kept without being needed: what they compute does not matter, so what they read may still go. Units that
    are tied together count once in each of their layers.
    """
    while multiple_of > 1:
        changed = False
        for site in analysis.sites:
            kept = liveness.kept[site.units]
            count = int(kept.sum())
            lacking = -count % multiple_of if 2 * count > multiple_of else 0
            for unit in site.units[~kept][:lacking].tolist():
                liveness.kept[unit] = changed = True
        if not changed:
            return
