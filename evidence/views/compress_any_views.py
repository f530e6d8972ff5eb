"""The table of `bench compress-any`: what others make of trained networks, and calibrated rounding at the same loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from paring.cli.grid import markdown
from paring.cli.human import DASH
from paring.cli.results import Results, Row


def compress_any_view(results: Results) -> str:
    """One line per network and way: megabytes, loss, what it is good for, and what calibrated rounding takes at that loss."""
    heads = ["network", "way", "MB", "loss", "on test data", "calibrated at this loss, MB", "smaller by"]
    lines = []
    for network in dict.fromkeys(row["network"] for row in results.rows):
        rows = [row for row in results.rows if row["network"] == network]
        curve = [row for row in rows if row["way"].startswith("calibrated")]
        for row in rows:
            own = row in curve or row["way"].startswith(("within", "as it is"))
            ours = None if own else bytes_at(curve, row["loss"])
            good = ", ".join(f"{name} {value:.4f}" for name, value in row["qualities"].items())
            line = [network, row["way"], f"{row['bytes'] / 1e6:.3f}", f"{row['loss']:.5f}", good]
            saved = DASH if ours is None else f"{100 * (1 - ours / row['bytes']):.0f} %"
            lines.append([*line, DASH if ours is None else f"{ours / 1e6:.3f}", saved])
    return markdown(heads, lines, 2)


def bytes_at(curve: Sequence[Row], loss: float) -> float | None:
    """Bytes of a curve at a loss, between its two nearest points along the logarithm of the loss; None outside of it."""
    points = sorted((row["loss"], row["bytes"]) for row in curve if row["loss"] > 0)
    for (low, large), (high, small) in itertools.pairwise(points):
        if low <= loss <= high:
            share = math.log(loss / low) / math.log(high / low) if high > low else 0.0
            return float(large + share * (small - large))
    return None
