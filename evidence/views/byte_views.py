"""Error against the bytes of the file: a table with the point at zero loss of every compressor, bits of layers, and a chart."""

from __future__ import annotations

import statistics
from typing import Any

from paring.cli.grid import NETWORKS, markdown
from paring.cli.human import DASH, exact, seconds
from paring.cli.plots import line_chart
from paring.cli.results import Results, Row

_TOP = 10.0  # percent


def _groups(results: Results) -> dict[tuple[str, str], list[Row]]:
    """Network and method -> rows, networks and compressors in order of appearance, the fewest bytes last."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        found.setdefault((row["model"], row["method"]), []).append(row)
    return found


def _spread(values: list[float], digits: int = 2) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def bytes_view(results: Results) -> str:
    """Every operating point: errors, bytes, ratio to the dense network in float32, which one is at zero loss, times."""
    heads = (
        "network",
        "compressor",
        "zero loss",
        "bytes",
        "ratio",
        "error %",
        "validation %",
        "dense %",
        "compressing, CPU",
        "seeds",
    )
    lines = []
    for (model, method), rows in _groups(results).items():
        lines.append(
            (
                *(NETWORKS.get(model, model), method, "**yes**" if rows[0].get("zero_loss") else ""),
                *_size(rows),
                _spread([row["error"] for row in rows]),
                _spread([row["validation_error"] for row in rows]) if "validation_error" in rows[0] else DASH,
                _spread([row["dense_error"] for row in rows]) if "dense_error" in rows[0] else DASH,
                seconds(statistics.fmean(row["compress_cpu_seconds"] for row in rows))
                if "compress_cpu_seconds" in rows[0]
                else DASH,
                "quoted" if rows[0]["source"] == "quoted" else str(len(rows)),
            )
        )
    return markdown(heads, lines, words=3)


def _size(rows: list[Row]) -> tuple[str, str]:
    """Mean bytes, and how often they go into those of the dense network."""
    known = [row["bytes"] for row in rows if "bytes" in row]
    return exact(statistics.fmean(known)) if known else DASH, f"{statistics.fmean(row['ratio'] for row in rows):.1f}"


def zero_loss_view(results: Results) -> str:
    """The smallest files at zero loss: of each network the three compressors that go furthest."""
    groups = {key: rows for key, rows in _groups(results).items() if rows[0].get("zero_loss")}
    lines = []
    for model in dict.fromkeys(model for model, _ in groups):
        mine = [(method, rows) for (network, method), rows in groups.items() if network == model]
        mine.sort(key=lambda pair: statistics.fmean(row["bytes"] for row in pair[1]))
        for method, rows in mine[:3]:
            errors = (_spread([row[key] for row in rows]) for key in ("error", "dense_error"))
            lines.append((NETWORKS.get(model, model), method, *_size(rows), *errors, str(len(rows))))
    return markdown(("network", "compressor", "bytes", "ratio", "error %", "dense %", "seeds"), lines, words=2)


def layer_bits_view(results: Results) -> str:
    """Bits of the file for each weight of each layer at the points of zero loss (of every point where none is)."""
    groups = _groups(results)
    marked = {key: rows for key, rows in groups.items() if rows[0].get("zero_loss")} or groups
    lines = []
    for (model, method), rows in marked.items():
        layers = rows[0].get("layers") or {}
        told = ", ".join(
            f"{name.removesuffix('.weight')} ({layer['kind']}) {statistics.fmean(_bits(row, name) for row in rows):.2f}"
            for name, layer in layers.items()
        )
        lines.append((NETWORKS.get(model, model), method, told or DASH))
    return markdown(("network", "compressor", "bits per weight"), lines, words=3)


def _bits(row: Row, name: str) -> float:
    found: float = row["layers"].get(name, {"bits": 0.0})["bits"]
    return found


def bytes_chart(results: Results, model: str) -> str | None:
    """Test error against kilobytes of the file, one line per compressor, bands of one standard deviation.

    Points above `_TOP` are in the table only: they would press all others into one line.
    """
    points: dict[str, list[tuple[float, float, float]]] = {}
    for (network, method), rows in _groups(results).items():
        if network == model and rows[0]["source"] == "measured":
            errors = [row["error"] for row in rows]
            width = statistics.stdev(errors) if len(errors) > 1 else 0.0
            kilobytes = statistics.fmean(row["bytes"] for row in rows) / 1000
            if statistics.fmean(errors) > _TOP:
                continue
            points.setdefault(method.partition(":")[0], []).append((kilobytes, statistics.fmean(errors), width))
    series: dict[str, Any] = {}
    for name, found in points.items():
        if "," not in name:
            found.sort()
            xs, means = [p[0] for p in found], [p[1] for p in found]
            series[name] = (
                xs,
                means,
                [m - p[2] for m, p in zip(means, found, strict=True)],
                [p[1] + p[2] for p in found],
            )
    if not series:
        return None
    dense = {row["seed"]: row["dense_error"] for row in results.rows if row["model"] == model and "dense_error" in row}
    levels = {"dense network": statistics.fmean(dense.values())} if dense else {}
    title = f"{NETWORKS.get(model, model)}: error against bytes"
    return line_chart(
        series, "kilobytes of the file", f"test error, % (up to {_TOP:g})", title, logx=True, logy=True, levels=levels
    )
