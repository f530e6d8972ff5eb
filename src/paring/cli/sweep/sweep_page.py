"""The page of a sweep: what varied, what came out, over seeds and trial by trial, and what failed. Self-contained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paring.cli.blocks import Align, linked_table
from paring.cli.grid import spread
from paring.cli.human import DASH, NUMBERS, seconds, share
from paring.cli.page import Html, callout, figure, heading, page, paragraph, table, tiles
from paring.cli.plots import scatter_chart
from paring.cli.results import Results, Row, summarise
from paring.cli.sweep.rows import settings, short, varying

_SEED = "recipe.seed"
_KEYS = ("error", "validation_error", "parameters", "nonzeros", "macs", "train_seconds")
_COLUMNS = [(key, label, text) for key, label, text in NUMBERS if key in _KEYS]
Failed = tuple[str, str, int, str]


def sweep_page(results: Results, failed: Sequence[Failed] = (), link: Callable[[Row], str] = lambda row: "") -> str:
    """One HTML document.

    Args:
        results: the table, its rows with their settings under "config".
        failed: name, reason, number of attempts and folder of each trial that failed.
        link: where a row's run is, from the page; empty for nowhere.
    """
    rows = results.rows
    found = settings(rows)
    varied = varying(found)
    names = short(varied)
    blocks: list[Html] = [_headline(rows, failed), *_failures(failed)]
    if rows:
        blocks += _over_seeds(rows, found, varied, names)
        blocks += [heading("Trials"), _trials(rows, found, varied, names, link), *_chart(rows)]
        same = [(name, str(value)) for name, value in found[0].items() if name not in varied]
        blocks += [heading("Settings of all trials"), table(("setting", "value"), same, ("left", "left"))]
    blocks.append(paragraph(f"Made by: {results.made()}"))
    return page(f"paring: sweep {results.name}", blocks)


def _headline(rows: Sequence[Row], failed: Sequence[Failed]) -> Html:
    times = [row["train_seconds"] for row in rows if row.get("train_seconds") is not None]
    entries = [(str(len(rows)), "trials done", "in this table"), (str(len(failed)), "failed", "when it was made last")]
    return tiles([*entries, (seconds(sum(times)), "training time", "all trials together")])


def _failures(failed: Sequence[Failed]) -> list[Html]:
    if not failed:
        return []
    told = "The same command tries them again. The traceback is in error.txt in the folder."
    lines = [(name, reason, str(attempts), folder) for name, reason, attempts, folder in failed]
    listing = table(("trial", "reason", "attempts", "folder"), lines, ("left", "left", "right", "left"))
    return [heading("Failed"), callout("bad", f"{len(failed)} trials failed. {told}"), listing]


def _over_seeds(
    rows: Sequence[Row], found: Sequence[Mapping[str, Any]], varied: Sequence[str], names: Mapping[str, str]
) -> list[Html]:
    """Mean ± standard deviation of the trials that differ in nothing but the seed."""
    by = [name for name in varied if name != _SEED]
    if _SEED not in varied:
        return []
    keys = [key for key, _, _ in _COLUMNS]
    flat = [{**one, **{f"={key}": row.get(key) for key in keys}} for row, one in zip(rows, found, strict=True)]
    lines = [
        (
            *(_text(group.key[name]) for name in by),
            str(group.n),
            *(spread(group.stats.get(f"={key}"), text) for key, _, text in _COLUMNS),
        )
        for group in summarise(flat, by, [f"={key}" for key in keys])
    ]
    headers = (*(names[name] for name in by), "seeds", *(label for _, label, _ in _COLUMNS))
    return [heading("Over seeds"), _table(headers, lines, len(by)), paragraph("Mean ± sample standard deviation.")]


def _trials(
    rows: Sequence[Row],
    found: Sequence[Mapping[str, Any]],
    varied: Sequence[str],
    names: Mapping[str, str],
    link: Callable[[Row], str],
) -> Html:
    lines = [
        (
            str(row.get("run")),
            *(_text(one.get(name)) for name in varied),
            *(text(row.get(key)) for key, _, text in _COLUMNS),
        )
        for row, one in zip(rows, found, strict=True)
    ]
    headers = ("run", *(names[name] for name in varied), *(label for _, label, _ in _COLUMNS))
    return _table(headers, lines, 1 + len(varied), [link(row) for row in rows])


def _chart(rows: Sequence[Row]) -> list[Html]:
    """Error against the share of the weights that is left, a kind of mark per network and method."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        if row.get("error") is None or not row.get("nonzeros") or not row.get("dense_parameters"):
            continue
        xs, ys = series.setdefault(f"{row.get('model')}, {row.get('method')}", ([], []))
        xs.append(row["nonzeros"] / row["dense_parameters"])
        ys.append(row["error"])
    points = [x for xs, _ in series.values() for x in xs]
    if len(points) < 2:
        return []
    try:
        svg = scatter_chart(series, "nonzero weights, share of dense", "test error in %", "Error", logx=True)
    except ImportError as error:
        return [paragraph(f"The figure is left out: {error}")]
    spread_text = f"from {share(min(points))} to {share(max(points))} of the dense network's parameters"
    return [figure(svg, f"Test error of every trial; nonzero weights {spread_text}.")]


def _table(
    headers: Sequence[str], lines: Sequence[Sequence[str]], words: int, links: Sequence[str] | None = None
) -> Html:
    """A table of which columns that hold nothing are left out."""
    kept = [index for index in range(len(headers)) if any(line[index] not in ("", DASH) for line in lines)]
    cells = [[line[index] for index in kept] for line in lines]
    heads = [headers[i] for i in kept]
    align: list[Align] = ["left" if i < words else "right" for i in kept]
    return table(heads, cells, align) if links is None else linked_table(heads, cells, links, align)


def _text(value: Any) -> str:
    return DASH if value is None or value == "" else str(value)
