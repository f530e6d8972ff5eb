"""What a finished run came to, for people: a few lines, and the command that comes next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paring.cli.human import DASH, exact, percent, seconds, share, size
from paring.core.printable import printable

_MOST = 8  # layers that are named


def summary(row: Mapping[str, Any], folder: Path) -> str:
    """The result of a run in words.

    Args:
        row: the result.
        folder: of the run.
    """
    lines = [f"{row['model']} on {row['data']}, {row.get('method', DASH)}, {row.get('epochs', DASH)} epochs"]
    entries = [("test error", percent(row.get("error")))]
    if row.get("validation_error") is not None:
        entries.append(("validation error", percent(row["validation_error"])))
    entries += [
        ("parameters", _change(row.get("dense_parameters"), row.get("parameters"))),
        ("MACs", _change(row.get("dense_macs"), row.get("macs"))),
        ("nonzeros", exact(row.get("nonzeros"))),
        ("bytes on disk", size(row.get("bytes"))),
        ("training time", seconds(row.get("train_seconds"))),
    ]
    lines += [f"  {what:<17} {text}" for what, text in entries if text != DASH]
    if units := narrowed(row):
        told = ", ".join(f"{printable(name)} {before:,} → {after:,}" for name, before, after in units[:_MOST])
        more = f", and {len(units) - _MOST} more layers" if len(units) > _MOST else ""
        lines.append(f"  {'units':<17} {told}{more}")
    lines += [f"  note: {printable(note)}" for note in row.get("notes") or () if isinstance(note, str)]
    where = shlex.quote(str(folder))
    lines += [
        "next:",
        f"  paring report {where}                   every layer, and {folder / 'report.html'}",
        f"  paring pack {where} --out net.pare      a small file; --max-loss-increase 0 for the smallest",
    ]
    if row.get("method") == "dense":
        lines.append("  the same with --method l0 --price budget:macs=0.25      a smaller network")
    return "\n".join(lines)


def narrowed(row: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Layers that lost units: name, units before, units after."""
    widths = row.get("widths")
    found = widths.items() if isinstance(widths, Mapping) else ()
    return [(name, before, after) for name, (before, after) in found if after < before]


def _change(before: float | None, after: float | None) -> str:
    if after is None or not before:
        return exact(after)
    return f"{exact(before)} → {exact(after)} ({share(after / before)})"
