"""Tables and figures of hard-threshold networks: error, generalisation, and how true the gradients are."""

from __future__ import annotations

import textwrap

from evidence.tables.table import is_shortened
from paring.cli.grid import DATA, NETWORKS, grid, key_column, stat_column
from paring.cli.human import DASH, percent, seconds
from paring.cli.looks import in_words
from paring.cli.plots import bar_chart
from paring.cli.results import Results, summarise

UNITS = {"sign": "sign", "2-bit": "4 levels", "3-bit": "6 levels", "saturated": "saturated ReLU", "real": "ReLU"}


def _error(value: float | None) -> str:
    return percent(value).removesuffix(" %")


def _gap(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


def hard_view(results: Results) -> str:
    """One line per network, data, units and rule: error, what of it is generalisation, and the mismatch of the gradient."""
    rows = [{**row, "gap": _difference(row.get("error"), row.get("train_error"))} for row in results.rows]
    values = (
        "error",
        "train_error",
        "gap",
        "cosine",
        "linear",
        "right",
        "captured",
        "epoch_seconds",
        "epoch_cpu_seconds",
    )
    columns = [
        key_column("network", "model", NETWORKS),
        key_column("data", "data", DATA),
        key_column("units", "units", UNITS),
        key_column("rule", "method"),
        stat_column("error %", "error", _error),
        stat_column("training error %", "train_error", _error),
        stat_column("gap", "gap", _gap),
        stat_column("cosine", "cosine", _gap),
        stat_column("linear", "linear", _gap),
        stat_column("better target", "right", lambda value: DASH if value is None else percent(100 * value)),
        stat_column("captured", "captured", _gap),
        stat_column("an epoch", "epoch_seconds", seconds),
        stat_column("of CPU", "epoch_cpu_seconds", seconds),
        ("seeds", False, lambda group: "quoted" if group.key["source"] == "quoted" else str(group.n)),
    ]
    return grid(summarise(rows, ("model", "data", "units", "method", "source"), values), columns)


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def hard_chart(results: Results, model: str, data: str) -> str | None:
    """One bar per units and rule: mean test error, lowest to highest over seeds; the ReLU network's is marked.

    Checks with few examples are no bars.
    """
    rows = [row for row in results.rows if "units" in row and not is_shortened(row["method"])]
    found = [row for row in rows if (row.get("model"), row.get("data")) == (model, data)]
    bars: dict[str, tuple[float, float, float]] = {}
    methods: dict[str, str] = {}
    reference = None
    for group in summarise(found, ("units", "method", "source"), ("error",)):
        errors = [row["error"] for row in group.rows]
        units, method = group.key["units"], group.key["method"]
        name = textwrap.fill(f"{UNITS.get(units, units)}: {in_words(method)}", 36)
        bars[name] = (group.stats["error"].mean, min(errors), max(errors))
        methods[name] = method
        if method == "relu":
            reference = group.stats["error"].mean
    if not bars:
        return None
    title = f"{NETWORKS.get(model, model)} on {DATA.get(data, data)}: error by unit and rule"
    return bar_chart(bars, "test error, % (the line: ReLU)", title, reference=reference, methods=methods)
