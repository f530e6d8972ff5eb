"""The page of `paring prune`: before and after, the curve of the loss against the cost, what went and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paring.cli.blocks import Html, figure, heading, page, paragraph, table, tiles
from paring.cli.human import DASH, change, count, exact, seconds, share, size
from paring.cli.plots import bar_chart, line_chart
from paring.cli.prune_result import number

Row = Mapping[str, Any]
_MOST_BARS = 30
_WHAT = {
    "fisher": "half of the mean squared gradient of each example's loss by a gate on the unit (Fisher); half of the curvature where that vanishes",
    "taylor": "the size of the mean gradient of the loss by a gate on the unit (Taylor)",
    "magnitude": "the size of the unit's weights",
}


def prune_page(title: str, row: Row) -> str:
    """The document; `row` is what `result_row` gives. Without matplotlib the figures are left out, and the page says so."""
    dense, networks = row["dense"], row["networks"]
    blocks: list[str] = [
        _headline(dense, networks[-1]),
        *_notes(row),
        heading("Before and after"),
        _sizes(dense, networks),
    ]
    try:
        blocks += [_curve(dense, networks, "loss", "Loss")]
        if dense.get("metric") is not None:
            blocks += [_curve(dense, networks, "metric", "Metric")]
    except ImportError as error:
        blocks.append(paragraph(f"The figures are left out: {error}"))
    blocks += [heading("Groups of units"), _groups(networks), *_left(networks[-1])]
    blocks += [heading("Layers"), _layers(dense, networks)]
    blocks += [heading("What was chosen, and why"), *_why(row), *_path(networks)]
    blocks += [heading("Training"), *_training(networks), heading("Times"), _times(networks)]
    settings = row.get("settings")
    if isinstance(settings, Mapping):
        told = [(name, _text(value)) for name, value in settings.items() if value not in ("", None)]
        told += [(name, str(row[name])) for name in ("run", "threads", "torch") if row.get(name) is not None]
        blocks += [heading("Settings"), table(("setting", "value"), told, ("left", "left"))]
    return page(title, blocks)


def _text(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _headline(dense: Row, last: Row) -> Html:
    entries = []
    for key, what in (("macs", "MACs left"), ("parameters", "parameters left")):
        if last.get(key) is not None and dense.get(key):
            entries.append((share(last[key] / dense[key]), what, f"{count(last[key])} of {count(dense[key])}"))
    entries.append((number(last.get("loss")), "loss", f"dense {number(dense.get('loss'))}"))
    if dense.get("metric") is not None:
        entries.append((number(last.get("metric")), "metric", f"dense {number(dense['metric'])}"))
    return tiles(entries)


def _notes(row: Row) -> list[Html]:
    notes = row.get("notes") or ()
    return [heading("Notes"), *map(paragraph, notes)] if notes else []


def _sizes(dense: Row, networks: Sequence[Row]) -> Html:
    """A column for the dense network and each small one."""

    def line(label: str, key: str, text: Any, *, relative: bool = True) -> list[str]:
        whole = dense.get(key)
        cells = [label, text(whole) if key in dense else DASH]
        for one in networks:
            value = one.get(key)
            step = f" ({change(value / whole - 1)})" if relative and value is not None and whole else ""
            cells.append(text(value) + step)
        return cells

    rows = [
        line("loss", "loss", number, relative=False),
        line("loss right after the cut", "cut_loss", number, relative=False),
    ]
    if dense.get("metric") is not None:
        rows += [line("metric", "metric", number, relative=False)]
        rows += [line("metric right after the cut", "cut_metric", number, relative=False)]
    rows += [
        line("MACs per example", "macs", count),
        line("parameters", "parameters", count),
        line("bytes", "bytes", size),
    ]
    for name, words in (("latency", "measured time"), ("memory", "measured peak memory")):
        if any(name in one["shares"] for one in networks):
            told = [share(one["shares"][name]) if name in one["shares"] else DASH for one in networks]
            rows.append([words, share(1.0), *told])
    return table(("", "dense", *(one["size"] for one in networks)), rows)


def _curve(dense: Row, networks: Sequence[Row], key: str, title: str) -> Html:
    """One point for each network over its share of the MACs; of the parameters where nothing is counted."""
    cost = "macs" if dense.get("macs") else "parameters"
    points = [(one[cost] / dense[cost], one.get(key)) for one in (dense, *networks) if one.get(cost) is not None]
    known = sorted((x, y) for x, y in points if y is not None)
    if not known:
        return paragraph(f"No curve: no {key} is finite.")
    what = "MACs" if cost == "macs" else "parameters"
    chart = line_chart(
        {key: ([x for x, _ in known], [y for _, y in known])},
        f"share of the dense network's {what}",
        key,
        f"{title} against {what}",
        levels={"dense": dense[key]} if dense.get(key) is not None else None,
    )
    return figure(chart, f"One point for each network, the dense one at 1. The {key} is that after training.")


def _names(layers: Sequence[str]) -> str:
    return ", ".join(name or "(net)" for name in layers[:3]) + (
        f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    )


def _groups(networks: Sequence[Row]) -> Html:
    heads = ("units of", "dense", *(one["size"] for one in networks))
    rows = []
    for place, group in enumerate(networks[0]["groups"]):
        after = [one["groups"][place]["after"] for one in networks]
        rows.append(
            (
                _names(group["layers"]),
                exact(group["before"]),
                *(f"{exact(n)} ({share(n / group['before'])})" for n in after),
            )
        )
    return table(heads, rows)


def _left(last: Row) -> list[Html]:
    groups = last["groups"]
    if len(groups) > _MOST_BARS:
        return [paragraph(f"No figure of the {len(groups)} groups: they are too many to draw.")]
    bars: dict[str, float | tuple[float, float, float]] = {}
    for group in groups:
        bars[_short(group["layers"], bars)] = group["after"] / group["before"]
    try:
        chart = bar_chart(bars, "share of the units that is left", f"Units left at {last['size']}", percent=True)
    except ImportError:
        return []
    return [figure(chart, "Layers whose units can only go together are one group, named by its first layer.")]


def _short(layers: Sequence[str], taken: Mapping[str, Any]) -> str:
    name = (layers[0] if layers else "") or "(net)"
    name = name if len(name) <= 28 else f"…{name[-27:]}"
    return name if name not in taken else f"{name} ({len(taken)})"


def _layers(dense: Row, networks: Sequence[Row]) -> Html:
    heads = ["layer", "kind", "units", "parameters", "MACs"]
    after = [{layer["name"]: layer for layer in one["layers"]} for one in networks]
    rows = []
    for layer in dense["layers"]:
        there = [found.get(layer["name"]) for found in after]
        cells = [layer["name"] or "(net)", layer["kind"]]
        for key in ("units", "parameters", "macs"):
            told = [exact(layer[key]), *("gone" if one is None else exact(one[key]) for one in there)]
            cells.append(told[0] if len(set(told)) == 1 else " → ".join(told))
        rows.append(cells)
    return table(heads, rows, ("left", "left", "right", "right", "right"))


def _why(row: Row) -> list[Html]:
    settings = row.get("settings") or {}
    how = settings.get("importance", "")
    repaired = (
        "What stays then took over the work of what went, by least squares."
        if settings.get("repair")
        else "Nothing was repaired."
    )
    teacher = settings.get("teacher")
    taught = (
        f"While training, the dense network taught with a weight of {teacher:g}."
        if teacher
        else "No teacher while training."
    )
    return [
        paragraph(
            f"Units were judged by {_WHAT.get(how, how)}, on {settings.get('batches', DASH)} batches. Those went that cost the "
            f"loss least for what they save, in {settings.get('rounds', DASH)} rounds, judged anew before each. {repaired} {taught}"
        )
    ]


def _path(networks: Sequence[Row]) -> list[Html]:
    series = {}
    for one in networks:
        points = [(x, y) for x, y in one["path"] if x is not None and y is not None]
        if points:
            series[one["size"]] = ([x for x, _ in points], [y for _, y in points])
    if not series:
        return []
    try:
        chart = line_chart(series, "share of the dense network's cost", "expected rise of the loss", "The search")
    except ImportError:
        return []
    return [
        figure(
            chart,
            "As units went, the sum of what their importance says that they cost the loss, before anything is repaired or trained.",
        )
    ]


def _training(networks: Sequence[Row]) -> list[Html]:
    series = {
        one["size"]: (list(range(1, len(one["losses"]) + 1)), one["losses"])
        for one in networks
        if one["losses"] and None not in one["losses"]
    }
    if not series:
        return [paragraph("Nothing was trained after the cut.")]
    try:
        chart = line_chart(series, "epoch", "training loss", "Training after the cut")
    except ImportError:
        return []
    return [figure(chart, "Mean training loss of each epoch, without the teacher's term.")]


def _times(networks: Sequence[Row]) -> Html:
    rows = [
        (one["size"], seconds(one["search_seconds"]), seconds(one["train_seconds"]), exact(one["steps"]))
        for one in networks
    ]
    return table(("network", "choosing and cutting", "training", "steps"), rows)
