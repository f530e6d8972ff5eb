"""Tables and the frontier of `bench deploy`: bytes, milliseconds and error of one network in several forms."""

from __future__ import annotations

from collections.abc import Callable

from evidence.views.prune_views import NETS
from paring.cli.grid import markdown
from paring.cli.human import milliseconds, size
from paring.cli.plots import scatter_chart
from paring.cli.results import Results, Row
from paring.cost import Comparison


def ways_view(results: Results) -> str:
    """One line per network, way and runtime: bytes of the file, times at both batches, error."""
    lines = [
        [
            str(NETS.get(row["model"], row["model"])),
            row["way"],
            row["runtime"],
            size(row["bytes"]),
            _said(row, 1),
            _said(row, 64),
            milliseconds(row["ms_64"]),
            f"{row['error']:.2f}",
        ]
        for row in _ways(results)
    ]
    heads = ["network", "way", "runtime", "file", "batch 1, times as fast", "batch 64, times as fast", "time of 64"]
    return markdown([*heads, "test error, %"], lines, 3)


def _said(row: Row, batch: int) -> str:
    """How many times as fast as dense PyTorch, with the 99 % interval; or that the times were too noisy."""
    found = Comparison(*(row[f"{name}_{batch}"] for name in ("ratio", "low", "high")))
    low, high = _times(1 / found.high), _times(1 / found.low)
    return f"{_times(1 / found.ratio)} ({low} to {high})" if found.clear else f"too noisy ({low} to {high})"


def sparse_view(results: Results) -> str:
    """What zeros save by `pr.deploy`."""
    rows = [row for row in results.rows if row.get("kind") == "sparse"]
    lines = [
        [
            str(row["run"]).replace("%", " %"),
            milliseconds(row["dense_ms"]),
            milliseconds(row["ms"]),
            f"{_times(row['ratio'])} ({_times(row['ratio_low'])} to {_times(row['ratio_high'])})",
            ", ".join(row["forms"]),
        ]
        for row in rows
    ]
    return markdown(["network", "dense", "deployed", "times as fast, 99 % interval", "forms"], lines, 1)


def int8_view(results: Results) -> str:
    """A network in int8 beside its float file, in ONNX Runtime."""
    lines = [
        [
            str(row["run"]),
            f"{row['int8_layers']} of {row['layers']}",
            f"{row['cosine']:.4f}",
            f"{size(row['float_bytes'])} → {size(row['bytes'])}",
            f"{milliseconds(row['float_ms'])} → {milliseconds(row['ms'])}",
            f"{_times(row['ratio'])} ({_times(row['ratio_low'])} to {_times(row['ratio_high'])})",
        ]
        for row in results.rows
        if row.get("kind") == "int8"
    ]
    heads = ["network", "layers in int8", "cosine", "file", "time", "times as fast, 99 % interval"]
    return markdown(heads, lines, 1)


def frontier(results: Results, model: str) -> str | None:
    """Error against the time of a batch, dense PyTorch's being 1; one mark per way, for each runtime."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in _ways(results):
        if row["model"] == model:
            xs, ys = series.setdefault(row["way"], ([], []))
            xs.append(row["ratio_64"])
            ys.append(row["error"])
    title = f"{NETS.get(model, model)}: 64 examples, in each runtime"
    return scatter_chart(series, "time, dense PyTorch = 1", "test error, %", title, logx=True) if series else None


def _ways(results: Results) -> list[Row]:
    return [row for row in results.rows if row.get("kind") == "ways"]


def _times(value: float) -> str:
    return f"{value:.1f}"


DEPLOY_VIEWS: dict[tuple[str, str], Callable[[Results], str]] = {
    ("deploy", "rows"): ways_view,
    ("deploy", "sparse"): sparse_view,
    ("deploy", "int8"): int8_view,
}
