"""The record of a run: one JSON object a line, written as training goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a kill leaves either the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
                file.write(json.dumps(row, allow_nan=False) + "\n")

    def reset(self, rows: list[dict[str, Any]]) -> None:
        """Go back to these rows (those of a checkpoint), on disk too."""
        self.rows = list(rows)
        if self.path is not None:
            write_atomic(self.path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
