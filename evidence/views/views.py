"""How results become tables and charts in the docs: `VIEWS` and `FIGURES`, by name of the results and of the view.

A key is (NAME or the beginning of a NAME, VIEW); the longest beginning that fits wins, so that ("", "rows") is what
every results file can be shown as. Spreads are mean ± sample standard deviation over seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from evidence.tables.savarese2020_equal import WAYS
from evidence.views.bench_views import BENCH_VIEWS
from evidence.views.byte_views import bytes_chart, bytes_view, layer_bits_view, zero_loss_view
from evidence.views.census_views import CENSUS_VIEWS
from evidence.views.density_views import (
    COST,
    MAIN,
    choice_view,
    density_chart,
    density_view,
    equal_cost_view,
    equal_view,
    layers_short_view,
    layers_view,
)
from evidence.views.deploy_views import DEPLOY_VIEWS, frontier
from evidence.views.ftprop_views import FTPROP_VIEWS
from evidence.views.hard_views import hard_chart, hard_view
from evidence.views.prune_views import PRUNE_VIEWS
from paring.cli.grid import NETWORKS, Column, grid, key_column, markdown, spread, stat_column
from paring.cli.human import DASH, NUMBERS, change, exact, percent, seconds, size
from paring.cli.plots import bar_chart, line_chart, scatter_chart
from paring.cli.results import Group, Results, ResultsError, Row, summarise

T = TypeVar("T")

_FIRST = ("model", "data", "method")
_OUTCOMES = frozenset(
    {"error", "train_error", "validation_error", "gated_error", "architecture", "parameters", "macs", "adds", "flops"}
    | {"nonzeros", "bytes", "density", "ratio", "ratio_low", "ratio_high", "milliseconds", "overhead_percent"}
    | {f"{ask}_{what}" for ask in ("expected", "support") for what in ("parameters", "macs", "flops")}
    | {"dense_parameters", "dense_macs", "train_seconds", "finish_seconds", "latency_ms", "latency_128_ms"}
    | {"run", "seed", "source", "date", "machine", "versions"}
)


def _architectures(group: Group) -> str:
    found = list(dict.fromkeys(str(row["architecture"]) for row in group.rows if row.get("architecture")))
    return "<br>".join(found[:3] + ["…"] * (len(found) > 3)) or DASH


def _seeds(group: Group) -> str:
    return "quoted" if group.rows[0]["source"] == "quoted" else str(group.n)


def _error(value: float | None) -> str:
    return percent(value).removesuffix(" %")


_ARCHITECTURE: Column = ("architecture", True, _architectures)
_SEEDS: Column = ("seeds", False, _seeds)
_SIZES = (
    stat_column("error %", "error", _error),
    stat_column("parameters", "parameters", exact),
    stat_column("MACs", "macs", exact),
    stat_column("bytes", "bytes", size),
    stat_column("training", "train_seconds", seconds),
)


def rows_view(results: Results) -> str:
    """Everything that is no outcome and varies names a group; seeds become mean ± standard deviation."""
    named = [key for row in results.rows for key, value in row.items() if not isinstance(value, list | tuple | dict)]
    settings = [key for key in dict.fromkeys((*_FIRST, *named)) if key not in _OUTCOMES]
    shown = [key for key in settings if key in _FIRST or len({str(row.get(key)) for row in results.rows}) > 1]
    outcomes = ("error", "parameters", "macs", "bytes", "train_seconds")
    groups = summarise(results.rows, (*settings, "source"), outcomes)
    heads = {"model": "network"}
    columns = [key_column(heads.get(key, key), key, NETWORKS if key == "model" else None) for key in shown]
    return grid(groups, [*columns, _ARCHITECTURE, *_SIZES, _SEEDS])


def louizos2018_view(results: Results) -> str:
    """Table 1 of the paper: per network the quoted rows, then ours; FLOPs are 2 × MACs, biases left out."""
    rows = [{**row, **_flops(row)} for row in results.rows]
    values = ("error", "parameters", "macs", "expected_flops", "flops", "train_seconds")
    groups = summarise(rows, ("model", "method", "source"), values)
    networks = list(dict.fromkeys(group.key["model"] for group in groups))
    groups.sort(key=lambda group: (networks.index(group.key["model"]), group.key["source"] == "measured"))
    columns = [
        key_column("network", "model", NETWORKS),
        key_column("method", "method"),
        _ARCHITECTURE,
        *_SIZES[:3],
        stat_column("expected FLOPs", "expected_flops", exact),
        stat_column("FLOPs", "flops", exact),
        stat_column("training", "train_seconds", seconds),
        _SEEDS,
    ]
    return grid(groups, columns)


def _flops(row: Row) -> dict[str, float]:
    pairs = (("flops", "macs"), ("expected_flops", "expected_macs"))
    return {key: 2 * row[macs] for key, macs in pairs if row.get(macs) is not None}


def relaxations_view(results: Results) -> str:
    """One line per relaxation: error after and before removal, and what was expected, supported and kept."""
    values = ("error", "gated_error", "expected_parameters", "support_parameters", "parameters", "ratio")
    columns = [
        key_column("relaxation", "method"),
        stat_column("error %", "error", _error),
        stat_column("error % before removal", "gated_error", _error),
        stat_column("expected parameters", "expected_parameters", exact),
        stat_column("support parameters", "support_parameters", exact),
        stat_column("parameters", "parameters", exact),
        stat_column("times smaller", "ratio", lambda value: DASH if value is None else f"{value:.1f}"),
        _SEEDS,
    ]
    return grid(summarise(results.rows, ("model", "method", "source"), values), columns)


def demo_view(results: Results) -> str:
    """Dense against small over seeds; rows hold "dense" and "small" objects as the demo's result does."""
    sides = [(row["dense"], row["small"]) for row in results.rows if _need(row, results, "dense", "small")]
    lines: list[Sequence[str]] = []
    for key, label, write in NUMBERS:
        pairs = [(a[key], b[key]) for a, b in sides if a.get(key) is not None and b.get(key) is not None]
        if not pairs:
            continue
        rows = [{"dense": a, "small": b, "step": b - a} for a, b in pairs]
        stats = summarise(rows, (), ("dense", "small", "step"))[0].stats
        dense, small, step = (stats[name] for name in ("dense", "small", "step"))
        if write is percent:
            told = f"{step.mean:+.2f}{'' if step.std is None else f' ± {step.std:.2f}'} points".replace("-", "−")
        elif any(row.get(f"speed_{key}", {"ratio": 1})["ratio"] is None for row in results.rows):
            told = "too noisy to say"
        else:
            told = change(small.mean / dense.mean - 1) if dense.mean else DASH
        lines.append((label, spread(dense, write), spread(small, write), told))
    return markdown(("", "dense", "small", "change"), [*lines, ("seeds", str(len(sides)), str(len(sides)), "")])


def _need(row: Row, results: Results, *keys: str) -> bool:
    """True when the row has all of these keys.

    Raises:
        ResultsError: it has not.
    """
    missing = [key for key in keys if row.get(key) is None]
    if missing:
        raise ResultsError(
            f"results '{results.name}': this view needs '{missing[0]}', which row {row.get('run', row)} lacks"
        )
    return True


def bench_view(results: Results) -> str:
    """One line per setting: median ratio of paired times, and its spread (the rows' own, else over rows)."""
    rows = [row for row in results.rows if _need(row, results, "setting") and _timed(row, results)]
    groups = summarise(rows, ("model", "setting", "threads", "source"), ("milliseconds",))
    columns = [
        key_column("network", "model", NETWORKS),
        key_column("setting", "setting"),
        stat_column("time", "milliseconds", lambda value: DASH if value is None else f"{value:.2f} ms"),
        ("times as fast", False, lambda group: _said(group.rows)),
        ("spread", False, lambda group: "{1:.2f} to {2:.2f}".format(*_ratio(group.rows))),
        ("repeats", False, lambda group: str(sum(row.get("repeats", 1) for row in group.rows))),
        ("threads", False, key_column("", "threads")[2]),
    ]
    return grid(groups, columns)


def _timed(row: Row, results: Results) -> bool:
    """True for a ratio, or a spread whose ratio is None because the times were too noisy to say it.

    Raises:
        ResultsError: the row has neither.
    """
    return row.get("ratio_low") is not None or _need(row, results, "ratio")


def _said(rows: Sequence[Row]) -> str:
    return "too noisy to say" if any(row["ratio"] is None for row in rows) else f"{_ratio(rows)[0]:.2f}×"


def _ratio(rows: Sequence[Row]) -> tuple[float, float, float]:
    """Median (the middle of the spread where no ratio could be said), lowest and highest ratio."""
    lows, highs = ([row[key if key in row else "ratio"] for row in rows] for key in ("ratio_low", "ratio_high"))
    middles = [row["ratio"] for row in rows if row["ratio"] is not None]
    return statistics.median(middles or [*lows, *highs]), min(lows), max(highs)


def rows_chart(results: Results, model: str | None = None) -> str | None:
    """Error against parameters, one kind of mark per method."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in results.rows:
        if row.get("error") is None or not row.get("parameters") or model not in (None, row.get("model")):
            continue
        name = str(row.get("method", results.name)) + (" (quoted)" if row["source"] == "quoted" else "")
        xs, ys = series.setdefault(name, ([], []))
        xs.append(row["parameters"])
        ys.append(row["error"])
    title = f"{NETWORKS.get(model, model)}: error against size" if model else "Error against size"
    return scatter_chart(series, "parameters", "test error, %", title, logx=True) if series else None


def bench_chart(results: Results) -> str | None:
    """One bar per setting, 1 marked."""
    rows: dict[str, list[Row]] = {}
    for row in results.rows:
        if not (_need(row, results, "setting") and _timed(row, results)) or row["ratio"] is None:
            continue
        network = NETWORKS.get(str(row.get("model")), row.get("model"))
        rows.setdefault(": ".join(str(part) for part in (network, row["setting"]) if part), []).append(row)
    bars = {name: _ratio(members) for name, members in rows.items()}
    title = f"How many times as fast: {results.name.replace('-', ' ')}"
    return bar_chart(bars, "times as fast (the line: as before)", title, reference=1.0) if bars else None


def curve_chart(
    results: Results, figure: str, title: str, xlabel: str, ylabel: str, model: str | None = None
) -> str | None:
    """The curves of one figure: rows with "figure", "label", "x", "y"; labels that end in "atoms" are points."""
    found = [row for row in results.rows if row.get("figure") == figure and model in (None, row.get("model"))]
    name = "method" if model else "label"
    series = {str(row[name]): (row["x"], row["y"]) for row in found if _need(row, results, name, "x", "y")}
    atoms = [name for name in series if name.endswith("atoms")]
    whole = f"{title}, {NETWORKS.get(model, model)}" if model else title
    return line_chart(series, xlabel, ylabel, whole, atoms=atoms) if series else None


VIEWS: dict[tuple[str, str], Callable[[Results], str]] = {
    ("", "rows"): rows_view,
    ("", "bench"): bench_view,
    ("gates", "rows"): bench_view,
    ("demo", "rows"): demo_view,
    ("louizos2018-mnist", "rows"): louizos2018_view,
    ("louizos2018-relaxations", "rows"): relaxations_view,
    ("savarese2020", "rows"): partial(density_view, columns=(0.5, 0.17, 0.1, 0.05, 0.03, 0.02)),
    ("savarese2020-small", "rows"): density_view,
    ("savarese2020-small", "equal"): equal_cost_view,
    ("savarese2020-starts", "rows"): choice_view,
    ("savarese2020-tuning", "rows"): partial(choice_view, families=tuple(WAYS)),
    ("savarese2020-equal", "rows"): equal_view,
    ("savarese2020-ablations", "rows"): partial(density_view, columns=(0.1, 0.02, 0.01)),
    ("frankle2020", "rows"): partial(density_view, columns=(0.51, 0.41, 0.21, 0.168, 0.107, 0.069, 0.02), near=1.1),
    ("he2018", "rows"): layers_view,
    ("he2018", "short"): layers_short_view,
    ("khoram2018", "rows"): bytes_view,
    ("khoram2018", "layers"): layer_bits_view,
    ("khoram2018", "zero"): zero_loss_view,
    ("friesen2018", "rows"): hard_view,
    **BENCH_VIEWS,
    **PRUNE_VIEWS,
    **DEPLOY_VIEWS,
    **CENSUS_VIEWS,
    **FTPROP_VIEWS,
}

_LOUIZOS = "louizos2018-figures"
_TRAINING = {"figure": "3", "title": "Expected FLOPs of one forward pass", "xlabel": "epoch", "ylabel": "FLOPs"}
_CURVES: dict[str, dict[str, Any]] = {
    "1": {"figure": "1", "title": "Penalties |θ|^p", "xlabel": "θ", "ylabel": "penalty"},
    "2a": {"figure": "2a", "title": "The gate at log α = 0", "xlabel": "z", "ylabel": "density, or mass of an atom"},
    "2b": {"figure": "2b", "title": "What replaces the L0 norm", "xlabel": "log α", "ylabel": "value"},
    "3a": _TRAINING | {"model": "lenet_300_100"},
    "3b": _TRAINING | {"model": "lenet5_caffe"},
}
FIGURES: dict[tuple[str, str], Callable[[Results], str | None]] = {
    ("", "rows"): rows_chart,
    ("", "bench"): bench_chart,
    ("gates", "rows"): bench_chart,
    **{("", model): partial(rows_chart, model=model) for model in NETWORKS},
    **{
        (start, f"{model}-{data}{part}"): partial(density_chart, model=model, data=data, names=names)
        for start, part, names in (
            ("savarese2020", "", MAIN),
            ("savarese2020", "-all", ()),
            ("savarese2020", "-cost", COST),
            ("frankle2020", "", ()),
        )
        for model in NETWORKS
        for data in ("mnist", "fashion_mnist", "cifar10")
    },
    **{
        ("friesen2018", f"{model}-{data}"): partial(hard_chart, model=model, data=data)
        for model, data in (
            ("lenet_300_100", "mnist"),
            ("lenet_300_100", "fashion_mnist"),
            ("convnet4_8", "mnist"),
            ("convnet4_8", "fashion_mnist"),
            ("convnet4", "cifar10"),
            ("convnet8", "cifar10"),
        )
    },
    **{("deploy", model): partial(frontier, model=model) for model in ("resnet8", "vit")},
    **{("khoram2018", model): partial(bytes_chart, model=model) for model in NETWORKS},
    **{(_LOUIZOS, view): partial(curve_chart, **told) for view, told in _CURVES.items()},
}


def find(table: Mapping[tuple[str, str], T], name: str, view: str) -> T:
    """The entry for these results and this view, by the longest beginning of the name.

    Raises:
        KeyError: no such view; the message lists those there are.
    """
    fits = [(start, asked) for start, asked in table if name.startswith(start)]
    mine = [start for start, asked in fits if asked == view]
    if not mine:
        raise KeyError(f"'{name}' has no view '{view}'; it has {', '.join(sorted({asked for _, asked in fits}))}")
    return table[max(mine, key=len), view]
