"""Evidence: `results/NAME.json`, made by one command, read by the docs, the plots and the tests.

    {"name", "command", "date", "machine": {...}, "versions": {...}, "rows": [{...}, ...]}

A row is a flat or nested JSON object. `"source"` says whether its numbers are "measured" (by us) or "quoted" (from a
paper). `"run"` names the measurement, so that repeating it replaces its row. `date` is the ISO day, and `machine` the
computer, of the first measurement; a row merged on another day or computer carries its own. Errors are in percent,
times in seconds, sizes in bytes.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from paring.cli.reading import RunError, kind_problem, read_json
from paring.core.plain_json import shown
from paring.train import write_atomic

_VALUES = 3 << 20  # that a file may hold
Row = dict[str, Any]
_SHAPE = {"name": str, "command": str, "date": str, "machine": dict, "versions": dict, "rows": list}
_OWN = ("date", "machine", "versions")


class ResultsError(ValueError):
    """A results file that is damaged, or is none; the message names the file and the problem."""


def machine() -> dict[str, Any]:
    """This computer: processor, usable cores, memory in GiB, platform, and the accelerator if there is one."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {"cpu": _cpu(), "cores": cores, "platform": f"{platform.system()} {platform.machine()}"}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found


def _cpu() -> str:
    """Model name of the processor, as the system gives it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8", errors="replace").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine() or "unknown"


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    import numpy
    import torch

    import paring

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "paring": paring.__version__,
    }


def today() -> str:
    """The ISO day."""
    return date.today().isoformat()


@dataclass(frozen=True)
class Results:
    """One file of evidence.

    Args:
        name: the file's stem.
        command: what a reader types to make it again.
        rows: one mapping per measurement or quotation.
        date, machine, versions: of the measurements; by default of here and now.

    Raises:
        ResultsError: the parts do not make a valid file.
    """

    name: str
    command: str
    rows: Sequence[Row] = ()
    date: str = field(default_factory=today)
    machine: dict[str, Any] = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        validate(self.to_dict(), f"results '{self.name}'")

    def to_dict(self) -> dict[str, Any]:
        """The file's content."""
        return {key: list(self.rows) if key == "rows" else getattr(self, key) for key in _SHAPE}

    def merge(self, row: Mapping[str, Any]) -> Results:
        """These results with `row`: in the place of the row with the same "run", otherwise at the end.

        A measured row of another day, machine or set of versions than the file's gets these as keys of its own.

        Raises:
            ResultsError: the row is none.
        """
        new = dict(row)
        if new.get("source") == "measured":
            now = {"date": today(), "machine": machine(), "versions": versions()}
            new = {key: value for key, value in now.items() if value != getattr(self, key)} | new
        names = [old.get("run") for old in self.rows]
        at = names.index(new["run"]) if new.get("run") in names and "run" in new else len(names)
        return replace(self, rows=(*self.rows[:at], new, *self.rows[at + 1 :]))

    def save(self, path: str | Path) -> None:
        """Write the file; a kill leaves the old one or the new one.

        Raises:
            ResultsError: the file's stem is not the name of these results.
        """
        path = Path(path)
        _same_name(self.name, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def made(self) -> str:
        """Command, machines and dates of the measured rows, as one line of text."""
        here = {key: getattr(self, key) for key in _OWN}
        own = [here | row for row in self.rows if row["source"] == "measured"] or [here]
        days = sorted({entry["date"] for entry in own})
        machines = list(dict.fromkeys(_machine_text(entry["machine"], entry["versions"]) for entry in own))
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        return f"`{self.command}`, {when}, {'; '.join(machines)}"


def _machine_text(computer: Mapping[str, Any], software: Mapping[str, Any]) -> str:
    cores = computer.get("cores")
    parts = [
        computer.get("accelerator"),
        computer.get("cpu"),
        f"{cores} core{'' if cores == 1 else 's'}" if cores else None,
        f"torch {software['torch']}" if "torch" in software else None,
    ]
    return ", ".join(str(part) for part in parts if part) or "machine not recorded"


def load(path: str | Path) -> Results:
    """Read a results file.

    Raises:
        FileNotFoundError: there is none.
        ResultsError: it is damaged, is something else, or was renamed.
    """
    path = Path(path)
    try:
        content = read_json(path, _VALUES)
    except RunError as error:
        raise ResultsError(f"{error}. It stays as it is; put back the file that its command wrote") from error
    validate(content, str(path))
    _same_name(content["name"], path)
    return Results(**{key: content[key] for key in _SHAPE})


def _same_name(name: str, path: Path) -> None:
    if path.name != f"{name}.json":
        raise ResultsError(f"{path} holds the results {shown(name)}; they belong in {shown(f'{name}.json')}")


def validate(content: Any, where: str = "results") -> None:
    """Check that `content` has the form of a results file.

    Raises:
        ResultsError: it has not; the message starts with `where`.
    """
    if not isinstance(content, dict):
        raise ResultsError(f"{where}: expected an object with {', '.join(_SHAPE)}; found {type(content).__name__}")
    for key, kind in _SHAPE.items():
        if key not in content:
            raise ResultsError(f"{where}: '{key}' is missing; a results file has {', '.join(_SHAPE)}")
        if not isinstance(content[key], kind):
            raise ResultsError(f"{where}: '{key}' must be {kind.__name__}, not {type(content[key]).__name__}")
    for key in ("name", "command"):
        if not content[key].strip():
            raise ResultsError(f"{where}: '{key}' is empty; evidence names the command that made it")
    _check_day(content["date"], where)
    seen: set[str] = set()
    for index, row in enumerate(content["rows"]):
        _check_row(row, f"{where}: row {index}", seen)


def _check_row(row: Any, where: str, seen: set[str]) -> None:
    if not isinstance(row, dict):
        raise ResultsError(f"{where} must be an object, not {type(row).__name__}")
    if row.get("source") not in ("measured", "quoted"):
        raise ResultsError(f"{where}: 'source' is {shown(row.get('source'))}; it must say 'measured' or 'quoted'")
    _check_plain(row, where)
    if problem := kind_problem(row):
        raise ResultsError(f"{where}: {problem}")
    if "date" in row:
        _check_day(row["date"], where)
    for key in ("machine", "versions"):
        if not isinstance(row.get(key, {}), dict):
            raise ResultsError(f"{where}: '{key}' must be dict, not {type(row[key]).__name__}")
    if "run" in row:
        if not isinstance(row["run"], str) or row["run"] in seen:
            raise ResultsError(f"{where}: 'run' is {shown(row['run'])}; it must be a text that no other row has")
        seen.add(row["run"])


def _check_day(day: Any, where: str) -> None:
    try:
        date.fromisoformat(day)
    except (TypeError, ValueError) as error:
        raise ResultsError(f"{where}: 'date' is {shown(day)}; it must be an ISO day such as 2026-01-31") from error


def _check_plain(value: Any, where: str) -> None:
    """Only what JSON can hold without loss."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ResultsError(f"{where}: the key {key!r} is no text")
            _check_plain(item, f"{where}, {shown(key)}")
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ResultsError(f"{where}: {value} is not a number; leave the key out (or null) when nothing was measured")
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise ResultsError(f"{where}: {type(value).__name__} cannot be written as JSON")


@dataclass(frozen=True)
class Stat:
    """Mean, sample standard deviation (n - 1 below; None for a single value) and number of values."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Group:
    """Rows that agree on some keys: what they agree on, the rows, and a `Stat` for every value that one of them has."""

    key: dict[str, Any]
    rows: tuple[Row, ...]
    stats: dict[str, Stat]

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.rows)


def summarise(rows: Iterable[Mapping[str, Any]], by: Sequence[str], values: Sequence[str]) -> list[Group]:
    """Group rows by the keys `by` (a missing key is None), in order of appearance, with statistics of `values`.

    Raises:
        ResultsError: one of `values` is not a number in some row.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row.get(key) for key in by], sort_keys=True), []).append(dict(row))
    return [_group(members, by, values) for members in groups.values()]


def _group(rows: list[Row], by: Sequence[str], values: Sequence[str]) -> Group:
    stats = {key: stat for key in values if (stat := _stat(rows, key)) is not None}
    return Group({key: rows[0].get(key) for key in by}, tuple(rows), stats)


def _stat(rows: Sequence[Row], key: str) -> Stat | None:
    found = [row[key] for row in rows if row.get(key) is not None]
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ResultsError(f"'{key}' is {value!r} in a row; statistics need a number")
    if not found:
        return None
    mean = math.fsum(found) / len(found)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in found) / (len(found) - 1)) if len(found) > 1 else None
    return Stat(mean, spread, len(found))
