"""The record of a run: one JSON object a line, written as training goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paring.core import warn
from paring.core.atomic import atomic
from paring.core.plain_json import VALUES, JSONError, is_count, is_number, parsed, shown, size

_VALUES = 3 << 20  # in a whole record
_NUMBERS = ("loss", "task_loss", "lr", "seconds", "cpu_seconds", "validation_loss", "error", "part")
_COSTS = ("expected_", "support_")


class RecordError(ValueError):
    """Lines that are no record of a run; the message names the file and the line."""


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a kill leaves either the old file or the new one."""
    with atomic(path) as file:
        file.write(text.encode())


def as_text(rows: list[dict[str, Any]]) -> str:
    """Rows as lines of JSON."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


class Record:
    """Lines of metrics, kept in memory and, with a path, on disk."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Append one row."""
        self.rows.append(row)
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(as_text([row]))

    def reset(self, rows: list[dict[str, Any]]) -> None:
        """Go back to these rows (those of a checkpoint), on disk too."""
        self.rows = list(rows)
        if self.path is not None:
            write_atomic(self.path, as_text(self.rows))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; none when there is no such file.

    A killed run may leave half a last line: it is left out, and a `ParingWarning` says so.

    Raises:
        RecordError: a line is damaged; the message names the file and the line.
    """
    if not path.is_file():
        return []
    text = path.read_bytes().decode(errors="replace")
    whole, end, half = text.rpartition("\n")
    rows = from_text(whole + end, str(path))
    if half:
        warn(f"the last line of {path} is cut short, as a run leaves it that is stopped while writing; it is left out")
    return rows


def from_text(text: str, where: str) -> list[dict[str, Any]]:
    """What `as_text` wrote. where: begins the message. Raises RecordError for anything else."""
    left, rows = _VALUES, []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        left -= 1 + size(line)
        try:
            row = parsed(line, VALUES if left > 0 else 0)
        except JSONError as error:
            raise RecordError(f"{where}, line {number}: {error}") from error
        if problem := _problem(row):
            raise RecordError(f"{where}, line {number}: {problem}")
        rows.append(row)
    return rows


def _problem(row: Any) -> str:
    """What is wrong with a row; empty when nothing is."""
    if not isinstance(row, dict):
        return f"a row is an object, not {shown(row)}"
    if "epoch" not in row and not isinstance(row.get("note"), str):
        return "it has neither 'epoch' nor 'note'"
    for key, value in row.items():
        if key in ("epoch", "step", "round"):
            fits = is_count(value, key == "epoch")
        elif key in _NUMBERS or key.startswith(_COSTS):
            fits = value is None or is_number(value)
        elif key == "units":
            fits = isinstance(value, dict) and all(one is None or is_number(one) for one in value.values())
        elif key == "shrinks":
            fits = isinstance(value, list) and all(isinstance(one, dict) for one in value)
        else:
            continue
        if not fits:
            return f"'{key}' is {shown(value)}"
    return ""
