"""A verdict as text and as a self-contained page: what matched, what it cost, and the curve of error against density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paring.cli.human import seconds
from paring.cli.page import Html, callout, figure, heading, page, paragraph, table, tiles
from paring.cli.plots import line_chart
from paring.cli.tickets.verdict import Level, Verdict, spread

_HEADS = ("open weights", "test error %", "matching", "epochs", "training")


def lines(verdict: Verdict) -> list[str]:
    """The verdict as a few lines of text."""
    rows = [_HEADS, *(_cells(level) for level in verdict.levels)]
    names = controls(verdict)
    if names:
        rows = [
            (*cells, *extra)
            for cells, extra in zip(rows, [names, *(_controls(level, names) for level in verdict.levels)], strict=True)
        ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    shown = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    dense = f"dense: {_mean(verdict.dense)} % over {len(verdict.dense)} seeds; matching is up to {verdict.bar:.2f} %"
    return [dense, "", *shown, "", *summary(verdict)]


def summary(verdict: Verdict) -> list[str]:
    """What the verdict says, a sentence each."""
    name = "winning ticket" if verdict.winning else "matching subnetwork"
    sparsest, best = verdict.sparsest, verdict.best
    found = (
        f"sparsest {name}: {_share(sparsest)} of the weights at {sparsest.error:.2f} %, "
        f"{sparsest.epochs:g} epochs ({seconds(sparsest.seconds)})"
        if sparsest is not None
        else f"no {name} at these densities"
    )
    return [
        found,
        f"best subnetwork: {_share(best)} of the weights at {best.error:.2f} %",
        f"all {len(verdict.levels)} densities: {verdict.sequential:g} epochs one after another, {verdict.epochs:g} in all "
        f"({seconds(verdict.seconds)})",
    ]


def controls(verdict: Verdict) -> tuple[str, ...]:
    """Names of the controls that were trained."""
    return tuple(dict.fromkeys(name for level in verdict.levels for name in level.controls))


def tickets_page(title: str, verdict: Verdict, rows: Sequence[dict[str, Any]], made: str) -> str:
    """One HTML document.

    Args:
        title: what was searched, with what.
        verdict: on it.
        rows: all trainings, dense ones included.
        made: how to make it again.
    """
    sparsest = verdict.sparsest
    names = controls(verdict)
    blocks: list[Html] = [
        tiles(
            [
                (f"{_mean(verdict.dense)} %", "dense", f"{len(verdict.dense)} seeds"),
                ("none" if sparsest is None else _share(sparsest), "sparsest that matches", "of the weights"),
                (f"{verdict.best.error:.2f} %", "best", f"at {_share(verdict.best)} of the weights"),
            ]
        ),
        callout("bad" if sparsest is None else "good", summary(verdict)[0]),
        figure(_chart(verdict), "Test error against the share of weights that is open; bands: one standard deviation."),
        heading("Densities"),
        table(
            (*_HEADS, *names),
            [(*_cells(level), *_controls(level, names)) for level in verdict.levels],
        ),
        *(paragraph(line) for line in summary(verdict)[1:]),
        heading("Layers"),
        _layers(rows),
        paragraph(f"Made by: {made}"),
    ]
    return page(f"paring: {title}", blocks)


def _layers(rows: Sequence[dict[str, Any]]) -> Html:
    """Share of the weights that is left in every layer, of the first seed's tickets."""
    tickets = [row for row in rows if row["control"] == "ticket"]
    first = [row for row in tickets if row["seed"] == tickets[0]["seed"]]
    names = list(first[0]["layers"])
    cells = [
        (f"{100 * row['weight_density']:.3g} %", *(f"{100 * row['layers'][name]['density']:.3g} %" for name in names))
        for row in first
    ]
    return table(("open weights", *names), cells)


def _chart(verdict: Verdict) -> str:
    levels = verdict.levels
    xs = [100 * level.density for level in levels]
    series: dict[str, Any] = {"tickets": _band(xs, [level.errors for level in levels])}
    for name in controls(verdict):
        with_it = [level for level in levels if name in level.controls]
        series[name] = _band([100 * level.density for level in with_it], [level.controls[name] for level in with_it])
    dense = [verdict.dense] * len(xs)
    series["dense"] = _band(xs, dense)
    return line_chart(series, "open weights, %", "test error, %", "Error against density", logx=True)


def _band(xs: Sequence[float], errors: Sequence[Sequence[float]]) -> tuple[Any, ...]:
    means = [sum(values) / len(values) for values in errors]
    half = [spread(values) for values in errors]
    low = [mean - width for mean, width in zip(means, half, strict=True)]
    high = [mean + width for mean, width in zip(means, half, strict=True)]
    return list(xs), means, low, high


def _cells(level: Level) -> tuple[str, ...]:
    return (
        _share(level),
        _mean(level.errors),
        "yes" if level.matching else f"no, {level.missing} diverged" if level.missing else "no",
        f"{level.epochs:g}",
        seconds(level.seconds),
    )


def _controls(level: Level, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(_mean(level.controls[name]) if name in level.controls else "–" for name in names)


def _share(level: Level) -> str:
    return f"{100 * level.density:.3g} %"


def _mean(errors: Sequence[float]) -> str:
    mean = sum(errors) / len(errors)
    return f"{mean:.2f} ± {spread(errors):.2f}" if len(errors) > 1 else f"{mean:.2f}"
