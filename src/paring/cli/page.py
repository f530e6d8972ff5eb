"""The page of one run: what it kept, layer by layer, and how it got there. Self-contained, see `paring.cli.blocks`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paring.cli.blocks import Html, callout, figure, heading, page, paragraph, table, tiles
from paring.cli.human import DASH, NUMBERS, change, count, exact, milliseconds, percent, share
from paring.cli.plots import line_chart

Row = Mapping[str, Any]
_SETTINGS = (
    ("model", "network"),
    ("data", "data"),
    ("method", "method"),
    ("seed", "seed"),
    ("epochs", "epochs"),
    ("architecture", "kept architecture"),
    ("threads", "threads"),
    ("torch", "torch"),
    ("python", "python"),
    ("run", "run"),
)
_MOST_LINES = 10


def run_page(
    title: str,
    result: Row,
    metrics: Sequence[Row],
    layers: Sequence[Row],
    extra_sections: Iterable[str] = (),
) -> str:
    """The report of a run as one HTML document.

    Args:
        title: heading of the page.
        result: the run's result; with "dense" and "small" inside, the two stand side by side.
        metrics: one row per epoch, as `fit` records them.
        layers: `paring.report(net, example).rows`.
        extra_sections: further blocks; plain text becomes a paragraph.

    What a section needs and is not there is named in its place; without matplotlib the figures are left out.
    """
    small, dense = _sides(result)
    speeds = {key: found for key in ("latency_ms", "latency_128_ms") if (found := result.get(f"speed_{key}"))}
    blocks: list[str] = [*_headline(small, dense, speeds), *_proof(result), *_notes(result), heading("Summary")]
    blocks += [_summary(small, dense, speeds)]
    blocks += [heading("Layers"), *_widths(result), _layers(layers)]
    blocks.append(heading("Over time"))
    try:
        blocks += [*_units(metrics), *_costs(metrics, result), *_learning(metrics)]
    except ImportError as error:
        blocks.append(paragraph(f"The figures are left out: {error}"))
    blocks += extra_sections
    settings = [(label, str(result[key])) for key, label in _SETTINGS if result.get(key) is not None]
    if settings:
        blocks += [heading("Settings"), table(("setting", "value"), settings, ("left", "left"))]
    return page(title, blocks)


def _sides(result: Row) -> tuple[Row, Row]:
    """Numbers of the small network and of the dense one, as far as they are known."""
    if isinstance(result.get("small"), Mapping) and isinstance(result.get("dense"), Mapping):
        return result["small"], result["dense"]
    known = {key: result.get(f"dense_{key}") for key in ("parameters", "macs")}
    return result, {key: value for key, value in known.items() if value is not None}


def _headline(small: Row, dense: Row, speeds: Mapping[str, Row]) -> list[Html]:
    """Tiles: shares of the dense sizes, the error, and the speed-up if it was measured and is clear."""
    entries: list[tuple[str, str, str]] = []
    for key, what in (("parameters", "parameters kept"), ("macs", "MACs kept")):
        if small.get(key) is not None and dense.get(key):
            remark = f"{count(small[key])} of {count(dense[key])}"
            entries.append((share(small[key] / dense[key]), what, remark))
    if (speed := speeds.get("latency_ms")) is not None:
        remark = f"{milliseconds(small.get('latency_ms'))}, dense {milliseconds(dense.get('latency_ms'))}, batch 1, one thread"
        if speed["ratio"] is not None:
            entries.append((f"{speed['ratio']:.2f}×", "the speed", f"{remark}, by {speed['by']}"))
        else:
            entries.append((DASH, "the speed", f"too noisy to say: {remark}"))
    if small.get("error") is not None:
        remark = f"dense {percent(dense['error'])}" if dense.get("error") is not None else "on the test set"
        entries.append((percent(small["error"]), "test error", remark))
    return [tiles(entries)] if entries else []


def _proof(result: Row) -> list[Html]:
    """The largest difference between the gated network and the removed one read back, against what is allowed."""
    differ, allowed = result.get("max_abs_diff"), result.get("tolerance")
    if differ is None or allowed is None:
        return []
    text = f"from the gated one by at most {differ:.1e} on the test set (allowed: {allowed:.0e})."
    if differ <= allowed:
        return [callout("good", f"Same function: read back from disk, the small network's outputs differ {text}")]
    return [callout("bad", f"Not the same function: read back from disk, the small network's outputs differ {text}")]


def _notes(result: Row) -> list[Html]:
    """What the run said of itself: what was asked and not done, and how the network was made smaller."""
    notes = result.get("notes")
    found = [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []
    return [heading("Notes"), *(paragraph(note) for note in found)] if found else []


def _summary(small: Row, dense: Row, speeds: Mapping[str, Row]) -> Html:
    rows = []
    for key, label, text in NUMBERS:
        ours, theirs = small.get(key), dense.get(key)
        if ours is None and theirs is None:
            continue
        if ours is None or theirs is None:
            step = DASH
        elif text is percent:
            step = f"{ours - theirs:+.2f} points".replace("-", "−")
        elif text is milliseconds:  # only paired times say how much faster it is
            ratio = speeds.get(key, {}).get("ratio")
            step = change(1 / ratio - 1) if ratio else "too noisy to say" if key in speeds else DASH
        else:
            step = change(ours / theirs - 1) if theirs else DASH
        rows.append((label, text(theirs), text(ours), step))
    if not rows:
        return paragraph("The result holds none of the numbers that this table shows.")
    return table(("", "dense", "small", "change"), rows)


def _widths(result: Row) -> list[Html]:
    """Units before and after of every layer, as a sentence: fc1 300 → 57."""
    pairs = result.get("widths")
    if not isinstance(pairs, Mapping) or not pairs:
        return []
    told = [f"{name or '(net)'} {exact(a)} → {exact(b)}" for name, (a, b) in pairs.items() if a != b]
    stay = len(pairs) - len(told)
    rest = f"{stay} layers keep all of theirs." if stay else ""
    return [paragraph(f"Units: {', '.join(told)}. {rest}" if told else "Every layer keeps all of its units.")]


def _layers(layers: Sequence[Row]) -> Html:
    if not layers:
        return paragraph("No layer table: the report of the small network was not handed over.")
    keys = ("parameters", "nonzeros", "macs", "bytes")
    # exact counts here: this is the table that people check by hand
    body = [
        (
            str(row.get("name") or "(net)"),
            str(row.get("kind") or DASH),
            exact(row.get("units")),
            "×".join(map(str, row["weight"])) if row.get("weight") else DASH,
            *(exact(row.get(key)) for key in keys),
        )
        for row in layers
    ]
    known = {key: [row[key] for row in layers if row.get(key) is not None] for key in keys}
    total = ("total", "", "", "", *(exact(sum(known[key])) if known[key] else DASH for key in keys))
    headers = ("layer", "kind", "units", "weight", "parameters", "nonzeros", "MACs", "bytes")
    return table(headers, body, ("left", "left", "right", "right", *["right"] * 4), total)  # type: ignore[arg-type]


def _units(metrics: Sequence[Row]) -> list[Html]:
    """Open units per layer over time, as shares of the most that the layer had."""
    rows = [row for row in metrics if "epoch" in row and isinstance(row.get("units"), Mapping)]
    names = list(dict.fromkeys(name for row in rows for name in row["units"]))
    if not names:
        return [paragraph("No figure of the units kept: the metrics hold no units per layer.")]
    caption = "Units that would stay if training stopped there, as a share of the most the layer had."
    if len(names) > _MOST_LINES:
        caption += f" {_MOST_LINES} of {len(names)} layers, evenly from first to last."
        names = [names[round(i * (len(names) - 1) / (_MOST_LINES - 1))] for i in range(_MOST_LINES)]
    series = {}
    for name in names:
        xs, ys = _values([{"epoch": row["epoch"], "units": row["units"].get(name)} for row in rows], "units")
        series[name or "(net)"] = (xs, [y / (max(ys) or 1.0) for y in ys])
    return [figure(line_chart(series, "epoch", "units kept", "Units kept", percent=True), caption)]


def _costs(metrics: Sequence[Row], result: Row) -> list[Html]:
    """Expected and support cost over time, relative to the dense network."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    guessed = False
    for what, label in (("parameters", "parameters"), ("macs", "MACs")):
        both = {ask: _values(metrics, f"{ask}_{what}") for ask in ("expected", "support")}
        whole = result.get(f"dense_{what}") or max((y for _, ys in both.values() for y in ys), default=0.0)
        guessed |= not result.get(f"dense_{what}")
        series |= {f"{label}, {ask}": (xs, [y / whole for y in ys]) for ask, (xs, ys) in both.items() if ys and whole}
    if not series:
        return [paragraph("No figure of the cost: the metrics hold no expected and support costs.")]
    caption = "Expected: what the gates' chances add up to. Support: what would remain if training stopped there."
    caption += " Relative to the largest value seen." if guessed else " Relative to the dense network."
    return [figure(line_chart(series, "epoch", "share of dense", "Cost", percent=True), caption)]


def _learning(metrics: Sequence[Row]) -> list[Html]:
    """Loss, and validation error, over time."""
    blocks = []
    apart = bool(_values(metrics, "task_loss")[1])  # older records hold only the sum
    named = {"training": "task_loss"} if apart else {"training, with penalty": "loss"}
    named["validation"] = "validation_loss"
    losses = {name: found for name, key in named.items() if (found := _values(metrics, key))[1]}
    if losses:
        caption = "Mean loss of every epoch" + (", without the method's penalty." if apart else ".")
        blocks.append(figure(line_chart(losses, "epoch", "loss", "Loss"), caption))
        both = [row for row in metrics if row.get("loss") is not None and row.get("task_loss") is not None]
        penalty = _values([{**row, "penalty": row["loss"] - row["task_loss"]} for row in both], "penalty")
        if apart and any(penalty[1]):
            chart = line_chart({"penalty": penalty}, "epoch", "penalty", "Penalty")
            blocks.append(figure(chart, "What the method adds to the loss: the mean of every epoch."))
    else:
        blocks.append(paragraph("No figure of the loss: the metrics hold none."))
    errors = _values(metrics, "error")
    if errors[1]:
        chart = line_chart({"validation error": errors}, "epoch", "error in %", "Validation error")
        blocks.append(figure(chart, "Error on the validation examples after every epoch."))
    else:
        blocks.append(paragraph("No figure of the validation error: this run set no validation examples aside."))
    return blocks


def _values(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the rows that have both."""
    found = [(float(row["epoch"]), float(row[key])) for row in rows if "epoch" in row and row.get(key) is not None]
    return [x for x, _ in found], [y for _, y in found]


__all__ = ["Html", "callout", "figure", "heading", "page", "paragraph", "run_page", "table", "tiles"]
