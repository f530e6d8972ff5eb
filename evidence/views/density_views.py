"""Error against density: the table of a comparison of sparsification methods, and its curves; what layers got.

A row's "method" is "NAME: SETTING", "dense", by which the others are judged, or "dense, ...". A row of a method of several
rounds stands for one subnetwork per round. What matches the dense network is judged as in `paring.cli.tickets.verdict`;
quoted rows are not judged by our networks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evidence.comparison import paired, told
from paring.cli.grid import DATA, NETWORKS, markdown
from paring.cli.human import DASH, seconds
from paring.cli.plots import line_chart
from paring.cli.results import Results, Row
from paring.cli.tickets.verdict import matches, spread

COLUMNS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
MAIN = ("CS", "IMP", "L0", "GMP, one threshold", "RigL", "SNIP")
_EQUAL = (4, 16, 340)  # epochs of four trainings, what Continuous Sparsification costs; IMP costs one a round
COST = ("CS", "IMP", *(f"{name}, {n} epochs" for n in _EQUAL for name in ("L0", "GMP, one threshold")))


@dataclass(frozen=True)
class Point:
    """One subnetwork over seeds: share of the weights that is open, errors in percent, epochs and seconds until it is trained.

    A quoted one has neither epochs nor seconds, nor seeds.
    """

    density: float
    errors: tuple[float, ...]
    seeds: frozenset[int]
    epochs: float | None
    seconds: float | None

    @property
    def error(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.errors)


def points(rows: list[Row]) -> list[Point]:
    """The subnetworks of one method on one task, densest first; seeds of the same setting and round together."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        for one in _subnetworks(row):
            groups.setdefault((row["method"], one.get("round")), []).append({"seed": row.get("seed"), **one})
    found = [
        Point(
            statistics.fmean(one["weight_density"] for one in members),
            tuple(one["error"] for one in members),
            frozenset(one["seed"] for one in members),
            _mean(members, "epochs"),
            _mean(members, "train_seconds"),
        )
        for members in groups.values()
    ]
    return sorted(found, key=lambda point: -point.density)


def _mean(rows: list[Row], key: str) -> float | None:
    """Mean over the rows that have this; None for none."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.fmean(values) if values else None


def _subnetworks(row: Row) -> Iterator[Row]:
    """A row of several rounds holds a trained subnetwork per ticket, any other row one."""
    yield from [one for one in row.get("rounds") or [] if one["ticket"]] or [row]


def _tasks(results: Results) -> dict[tuple[str, str], dict[str, list[Row]]]:
    """Network and data → method without its setting → rows."""
    found: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in results.rows:
        name = str(row["method"]).partition(":")[0]
        found.setdefault((row["model"], row["data"]), {}).setdefault(name, []).append(row)
    return found


def density_view(results: Results, columns: Sequence[float] = COLUMNS, near: float = 1.25) -> str:
    """Error at every density of `columns`, the sparsest subnetwork that matches, the sparsest of all, and what that one costs.

    Up to which error a subnetwork matches stands in the line of the dense network.

    Args:
        results: rows of a table.
        columns: densities; a subnetwork stands in a column that it is within this factor of.
        near: the factor.
    """
    heads = (
        "network",
        "data",
        "method",
        "100 %",
        *(f"{100 * d:g} %" for d in columns),
        "sparsest matching",
        "sparsest",
        "epochs",
        "training",
    )
    lines = []
    for (model, data), methods in _tasks(results).items():
        whole = methods.get("dense", [])
        dense, seeds = [row["error"] for row in whole], {row["seed"] for row in whole}
        bar = statistics.fmean(dense) + spread(dense) if dense else None
        for name, rows in methods.items():
            first = (NETWORKS.get(model, model), data, name)
            if _is_dense(name):
                blank = [DASH] * len(columns)
                epochs = statistics.fmean(row["epochs"] for row in rows)
                time = seconds(statistics.fmean(row["train_seconds"] for row in rows))
                judge = f"(up to {bar:.2f})" if name == "dense" and bar is not None else DASH
                lines.append((*first, _error([row["error"] for row in rows]), *blank, judge, DASH, f"{epochs:g}", time))
                continue
            found = points(rows)
            quoted = rows[0]["source"] == "quoted"
            matching = [
                one for one in found if bar is not None and matches(one.density, one.errors, bar, seeds - one.seeds)
            ]
            sparsest = _told(min(matching, key=lambda point: point.density)) if matching else "none"
            last = found[-1]
            lines.append(
                (
                    *first,
                    _cell(found, 1.0, 1.0),
                    *(_cell(found, density, near) for density in columns),
                    DASH if quoted or bar is None else sparsest,
                    _told(last),
                    "quoted" if quoted or last.epochs is None else f"{last.epochs:g}",
                    seconds(last.seconds),
                )
            )
    return markdown(heads, lines, words=3)


def _is_dense(name: str) -> bool:
    """A network that we trained without a method, at the recipe's length or another."""
    return name == "dense" or name.startswith("dense, ")


def _cell(found: list[Point], density: float, near: float) -> str:
    here = [point for point in found if density / near <= point.density <= density * near]
    if not here:
        return DASH
    return _error(min(here, key=lambda point: abs(point.density - density)).errors)


def _told(point: Point) -> str:
    return f"{100 * point.density:.3g} % at {point.error:.2f}"


def _error(errors: list[float] | tuple[float, ...]) -> str:
    mean = statistics.fmean(errors)
    return f"{mean:.2f} ± {spread(errors):.2f}" if len(errors) > 1 else f"{mean:.2f}"


def density_chart(results: Results, model: str, data: str, names: Sequence[str] = ()) -> str | None:
    """Error against the share of open weights on one task, with bands of one standard deviation; of these methods, or all."""
    methods = _tasks(results).get((model, data))
    if methods is None:
        return None
    series: dict[str, Any] = {}
    levels: dict[str, float] = {}
    for name, rows in methods.items():
        if name == "dense" or (name.startswith("dense, ") and any(one.endswith(name[5:]) for one in names)):
            levels[f"dense network{name[5:]}"] = statistics.fmean(row["error"] for row in rows)
        found = points(rows) if not _is_dense(name) and (name in names or not names) else []
        if found:
            means, half = [point.error for point in found], [spread(point.errors) for point in found]
            low = [mean - width for mean, width in zip(means, half, strict=True)]
            high = [mean + width for mean, width in zip(means, half, strict=True)]
            series[name] = ([100 * point.density for point in found], means, low, high)
    if not series:
        return None
    title = f"{NETWORKS.get(model, model)} on {DATA.get(data, data)}: error against density"
    return line_chart(series, "open weights, %", "test error, %", title, logx=True, logy=True, levels=levels)


def choice_view(results: Results, families: Sequence[str] = ("",)) -> str:
    """Validation error of every way (rows) at every density (columns), by network and length; the lowest of a column in bold.

    Args:
        results: rows of a table.
        families: beginnings of the ways' names; each has its own lowest.
    """
    errors: dict[tuple[str, int, str, str], list[float]] = {}
    for row in results.rows:
        name, _, setting = row["method"].partition(": ")
        errors.setdefault((row["model"], row["epochs"], name, setting), []).append(row["validation_error"])
    best: dict[tuple[str, int, str, str], float] = {}

    def column(model: str, epochs: int, name: str, setting: str) -> tuple[str, int, str, str]:
        return (model, epochs, next(family for family in families if name.startswith(family)), setting)

    for way, found in errors.items():
        best[column(*way)] = min(best.get(column(*way), math.inf), statistics.fmean(found))

    def cell(model: str, epochs: int, name: str, setting: str) -> str:
        found = errors.get((model, epochs, name, setting))
        if found is None:
            return DASH
        lowest = statistics.fmean(found) == best[column(model, epochs, name, setting)]
        return f"**{_error(found)}**" if lowest else _error(found)

    settings = sorted({setting for *_, setting in errors}, key=lambda share: -float(share.removesuffix(" %")))
    lines = [
        (NETWORKS.get(model, model), f"{epochs:g}", name, *(cell(model, epochs, name, setting) for setting in settings))
        for model, epochs, name in dict.fromkeys(way[:3] for way in errors)
    ]
    return markdown(("network", "epochs", "method", *settings), lines, words=3)


def equal_view(results: Results) -> str:
    """One line per task, density and method: its error, the paired difference to the dense network, and to which it is what.

    "Ahead of", "level with" and "behind" follow from the paired differences at this density (`evidence.comparison`).
    """
    heads = (
        *("network", "data", "density", "method", "error %", "minus dense"),
        *("ahead of", "level with", "behind", "seeds"),
    )
    lines = []
    for (model, data), methods in _tasks(results).items():
        task = (NETWORKS.get(model, model), DATA.get(data, data))
        dense = _by_seed(methods.get("dense", []))
        lines.append((*task, "100 %", "dense", _error(list(dense.values())), *[DASH] * 4, str(len(dense))))
        groups: dict[str, dict[str, dict[int, float]]] = {}
        for name, rows in methods.items():
            for row in () if name == "dense" else rows:
                density = str(row["method"]).partition(": ")[2]
                groups.setdefault(density, {}).setdefault(name, {})[row["seed"]] = row["error"]
        for density, found in groups.items():
            for name, errors in found.items():
                words: dict[str, list[str]] = {"ahead": [], "level": [], "behind": []}
                for other, theirs in found.items():
                    if other != name and (difference := paired(errors, theirs)) is not None:
                        words[difference.word].append(other)
                outcome = ("; ".join(words[word]) or DASH for word in ("ahead", "level", "behind"))
                mean = _error(list(errors.values()))
                lines.append((*task, density, name, mean, told(errors, dense), *outcome, str(len(errors))))
    return markdown(heads, lines, words=4)


def equal_cost_view(results: Results) -> str:
    """`equal_view` of what `savarese2020-small` has at the cost of Continuous Sparsification, at the densities that all were asked for."""
    rows: list[Row] = []
    for methods in _tasks(results).values():
        lengths = {name.rpartition(", ")[2] for name in methods if name.startswith("dense, ")}
        names = {
            name: name.partition(f", {length}")[0] for length in lengths for name in methods if name.endswith(length)
        }
        names |= {"CS": "CS, ticket retrained", "CS, weights kept": "CS, weights kept"}
        asked = [
            {str(row["method"]).partition(": ")[2] for row in methods.get(name, [])}
            for name in names
            if name[:5] != "dense"
        ]
        common = set.intersection(*asked) if asked else set()
        for name, told_as in names.items():
            for row in methods.get(name, []):
                density = str(row["method"]).partition(": ")[2]
                if density in common or told_as == "dense":
                    rows.append({**row, "method": f"{told_as}: {density}" if density else told_as})
    return equal_view(Results(results.name, results.command, rows))


def _by_seed(rows: Sequence[Row]) -> dict[int, float]:
    return {row["seed"]: row["error"] for row in rows}


def layers_view(results: Results) -> str:
    """Error, multiply-accumulates and parameters that are left, kept widths, and the share of its weights that each layer keeps."""
    heads = (
        "network",
        "data",
        "method",
        "widths",
        "layers",
        "error %",
        "MACs",
        "parameters",
        "epochs",
        "training",
        "seeds",
    )
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in results.rows:
        groups.setdefault((row["model"], row["data"], row["method"]), []).append(row)
    lines = []
    for (model, data, method), rows in groups.items():
        first = rows[0]
        kept = (f"{name} {100 * one['density']:.0f}" for name, one in first["layers"].items())
        macs, parameters = (
            statistics.fmean(row[name] / row[f"dense_{name}"] for row in rows) for name in ("macs", "parameters")
        )
        lines.append(
            (
                *(NETWORKS.get(model, model), data, method, first["architecture"], ", ".join(kept)),
                *(_error([row["error"] for row in rows]), f"{100 * macs:.1f} %", f"{100 * parameters:.1f} %"),
                *(
                    f"{first['epochs']}",
                    seconds(statistics.fmean(row["train_seconds"] for row in rows)),
                    str(len(rows)),
                ),
            )
        )
    return markdown(heads, lines, words=5)


def layers_short_view(results: Results) -> str:
    """The same in four columns: method, error, and what is left of multiply-accumulates and parameters."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in results.rows:
        groups.setdefault((row["model"], row["data"], row["method"]), []).append(row)
    lines = []
    for (model, data, method), rows in groups.items():
        left = (statistics.fmean(row[name] / row[f"dense_{name}"] for row in rows) for name in ("macs", "parameters"))
        task = f"{NETWORKS.get(model, model)}, {DATA.get(data, data)}"
        lines.append(
            (task, method, _error([row["error"] for row in rows]), *(f"{100 * share:.1f} %" for share in left))
        )
    return markdown(("network", "method", "test error %", "MACs left", "parameters left"), lines, words=2)
