"""Rows of many experiments: added to a results file, told apart by the settings that vary, and as CSV."""

from __future__ import annotations

import csv
import fcntl
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from paring.cli.results import Results, Row, load

CONFIG = "config"  # key of a row's settings, as `paring.cli.config.plain` writes them


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path.with_name(f".{path.stem}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def add_rows(path: Path, command: str, rows: Iterable[Row]) -> Results:
    """Merge rows into the results file as it is now: other processes may be adding to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        found = replace(load(path), command=command) if path.exists() else Results(path.stem, command)
        for row in rows:
            found = found.merge(row)
        found.save(path)
    return found


def set_aside(path: Path, other: Path, runs: Collection[str]) -> Results:
    """Move the rows of these runs from one results file to another.

    Args:
        path: of the file that has them.
        other: of the file that gets them; begun if it is not there.
        runs: keys of runs.

    Returns:
        What is left in the first.
    """
    with _locked(path):
        found = load(path)
        made = {"date": found.date, "machine": found.machine, "versions": found.versions}
        add_rows(other, found.command, [made | row for row in found.rows if row.get("run") in runs])
        left = replace(found, rows=[row for row in found.rows if row.get("run") not in runs])
        left.save(path)
    return left


def sort_rows(path: Path, runs: Sequence[str]) -> Results:
    """Put the rows of a results file in the order of these runs; quoted rows come first, rows of other runs last.

    Args:
        path: of the file.
        runs: keys of runs.
    """
    place = {run: number for number, run in enumerate(dict.fromkeys(runs))}
    with _locked(path):
        found = load(path)
        quoted = [row for row in found.rows if row["source"] == "quoted"]
        measured = [row for row in found.rows if row["source"] != "quoted"]
        measured.sort(key=lambda row: place.get(row["run"], len(place)))
        found = replace(found, rows=quoted + measured)
        found.save(path)
    return found


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted names: {"recipe.lr": 0.001, "method": "GMP", "method.density": 0.1, ...}."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix.rstrip(".") if key == "type" else f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
            found |= flat({str(index): item for index, item in enumerate(value)}, f"{name}.")
        elif isinstance(value, list):
            found[name] = " ".join(map(str, value))
        elif name:
            found[name] = value
    return found


def settings(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The settings of each row, flat."""
    return [flat(row.get(CONFIG) or {}) for row in rows]


def varying(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the settings that are not the same in all rows, in order of appearance."""
    names = dict.fromkeys(name for one in found for name in one)
    return [name for name in names if any(one.get(name) != found[0].get(name) for one in found)]


def short(names: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted name, where that is enough to tell them apart."""
    lasts = [name.rpartition(".")[2] for name in names]
    return {name: last if lasts.count(last) == 1 else name for name, last in zip(names, lasts, strict=True)}


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV: what names the run, the settings that vary (dotted), then everything measured that is one value."""
    found = settings(rows)
    varied = varying(found)
    measured = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "run"]
    measured = [key for key in measured if not any(isinstance(row.get(key), dict | list) for row in rows)]
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["run", *(name if "." in name else f"{name} (setting)" for name in varied), *measured])
    for row, one in zip(rows, found, strict=True):
        writer.writerow([row.get("run"), *map(one.get, varied), *map(row.get, measured)])
    return lines.getvalue()
