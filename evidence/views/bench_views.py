"""Tables of the benchmarks in the docs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evidence.views.compress_any_views import compress_any_view
from paring.cli.grid import NETWORKS, Column, grid, key_column, markdown, stat_column
from paring.cli.human import DASH, exact, milliseconds, percent, seconds
from paring.cli.results import Group, Results, Row, summarise

_KINDS = {"zero": "zero", "constant": "constant", "sign": "zero, ±s alive"}

_BITS = {
    "linear-4096x4096-b1": "linear, 4096×4096",
    "linear-4096x4096-b64": "linear, 4096×4096",
    "conv-256x256x3x3-14x14": "convolution 3×3, 256 to 256 maps of 14×14",
    "conv-256x256x3x3-14x14-b16": "convolution 3×3, 256 to 256 maps of 14×14",
    "convnet8": "ConvNet8",
    "convnet8-b64": "ConvNet8",
}


def _times(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}×"


def _share(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.0f} %"


def _network(model: str) -> str:
    return NETWORKS.get(model, model)


def removal_view(results: Results) -> str:
    """One line per network and kind of dead units: per tool the error, parameters left and seconds."""
    tools = list(dict.fromkeys(row["tool"] for row in results.rows))
    cases = list(dict.fromkeys((row["model"], row["kind"]) for row in results.rows))
    found = {(row["model"], row["kind"], row["tool"]): row for row in results.rows}
    heads = ["network", "dead units", "dense parameters"]
    for tool in tools:
        heads += [f"{tool}: error", "parameters", "time"]
    lines = []
    for model, kind in cases:
        rows = [found.get((model, kind, tool)) for tool in tools]
        dense = next(row["dense_parameters"] for row in rows if row is not None)
        line = [_network(model), _KINDS[kind], exact(dense)]
        for row in rows:
            line += _removed(row)
        lines.append(line)
    return markdown(heads, lines, 2)


def _removed(row: Row | None) -> list[str]:
    if row is None:
        return [DASH] * 3
    if "error" not in row:
        return [row["status"].partition(":")[0], exact(row.get("parameters")), DASH]
    error = f"{row['error']:.0e}"
    return [error if row["exact"] else f"**{error}**", exact(row["parameters"]), f"{row['seconds']:.2g} s"]


def removal_failures_view(results: Results) -> str:
    """What the tools said where they gave no network, or one that does not run."""
    failed = [row for row in results.rows if row["status"] != "done"]
    lines = [(_network(row["model"]), _KINDS[row["kind"]], row["tool"], row["status"]) for row in failed]
    return markdown(("network", "dead units", "tool", "what happened"), lines, 4) if lines else "Every tool ran on all."


def inference_view(results: Results, budgets: Sequence[float] = (0.5, 0.25, 0.1)) -> str:
    """One line per network, batch, runtime, budget and rounding whose MACs came within 30 % of the budget."""
    rows = [row for row in results.rows if row["budget"] in budgets and _near(row)]
    values = ("mac_ratio", "ratio", "realised", "saved", "dense_ms", "milliseconds")
    columns: list[Column] = [
        key_column("network", "model", NETWORKS),
        key_column("batch", "batch"),
        key_column("runtime", "runtime", {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}),
        key_column("widths: multiples of", "multiple_of"),
        stat_column("dense", "dense_ms", milliseconds),
        stat_column("small", "milliseconds", milliseconds),
        stat_column("times fewer MACs", "mac_ratio", _times),
        stat_column("times as fast", "ratio", _times),
        stat_column("speed-up / MAC ratio", "realised", _share),
        stat_column("time saved / MACs saved", "saved", _share),
    ]
    return grid(summarise(rows, ("model", "batch", "runtime", "budget", "multiple_of"), values), columns)


def _near(row: Row) -> bool:
    return bool(abs(row["macs"] / row["dense_macs"] / row["budget"] - 1) <= 0.3)


def inference_quarter_view(results: Results) -> str:
    """The same at a quarter of the MACs only."""
    return inference_view(results, (0.25,))


def training_speed_view(results: Results) -> str:
    """One line per network and method: time, error and size over seeds."""
    values = ["error", "parameters", "train_seconds", "ratio", "ratio_200", "ratio_cpu_200"]
    values += ["seconds_200", "step_ms_first", "step_ms_last"]
    columns: list[Column] = [
        key_column("network", "model", NETWORKS),
        key_column("data", "data"),
        key_column("memory order", "memory_order"),
        key_column("images", "images"),
        key_column("method", "method"),
        ("epochs run", False, key_column("", "epochs")[2]),
        stat_column("test error %", "error", lambda value: percent(value).removesuffix(" %")),
        stat_column("parameters", "parameters", exact),
        stat_column("step, first epoch", "step_ms_first", milliseconds),
        stat_column("step, last epoch", "step_ms_last", milliseconds),
        stat_column("training", "train_seconds", seconds),
        stat_column("200 epochs", "seconds_200", seconds),
        stat_column("times as fast, epochs run", "ratio", _times),
        stat_column("200 epochs, times as fast", "ratio_200", _times),
        stat_column("the same in CPU time", "ratio_cpu_200", _times),
        ("seeds", False, lambda group: str(group.n)),
    ]
    groups: list[Group] = summarise(
        results.rows, ("model", "data", "memory_order", "images", "method", "epochs"), values
    )
    return grid(groups, columns)


def bits_view(results: Results) -> str:
    """One line per layer or network, batch and number of threads: times, and bytes."""
    values = ["ratio", "ratio_cpu", "ratio_inside", "ratio_inside_cpu", "fp32_cpu_ms", "cpu_ms"]
    values += ["fp32_bytes", "bytes", "pare_bytes", "pare_bytes_skewed"]
    columns: list[Column] = [
        key_column("what", "model", _BITS),
        key_column("batch", "batch"),
        key_column("threads", "threads"),
        stat_column("float32, CPU time", "fp32_cpu_ms", milliseconds),
        stat_column("bits, CPU time", "cpu_ms", milliseconds),
        stat_column("times as fast, by the clock", "ratio", _times),
        stat_column("in CPU time", "ratio_cpu", _times),
        stat_column("from bits to bits, by the clock", "ratio_inside", _times),
        stat_column("in CPU time", "ratio_inside_cpu", _times),
        stat_column("bytes, float32", "fp32_bytes", exact),
        stat_column("bytes, bits", "bytes", exact),
        stat_column("`.pare`, even signs", "pare_bytes", exact),
        stat_column("`.pare`, 9 of 10 positive", "pare_bytes_skewed", exact),
    ]
    return grid(summarise(results.rows, ("model", "batch", "threads"), values), columns)


def sweep_view(results: Results) -> str:
    """One line per executor: what the trials take one after another, and on its workers."""
    columns: list[Column] = [
        key_column("network", "model", NETWORKS),
        key_column("trials", "trials"),
        key_column("executor", "executor"),
        key_column("workers", "workers"),
        stat_column("a trial", "trial_seconds", seconds),
        stat_column("one after another", "serial_seconds", seconds),
        stat_column("on the workers", "seconds", seconds),
        stat_column("share of the serial time", "ratio", _share),
    ]
    values = ["trial_seconds", "serial_seconds", "seconds", "ratio"]
    return grid(summarise(results.rows, ("model", "trials", "executor", "workers"), values), columns)


def codec_view(results: Results) -> str:
    """One line per kind of weights: entropy, then per coder the bits per weight, and our speeds."""
    coders = list(dict.fromkeys(row["coder"] for row in results.rows))
    kinds = list(dict.fromkeys(row["kind"] for row in results.rows))
    found = {(row["kind"], row["coder"]): row for row in results.rows}
    heads = ["weights", "entropy", *(f"{coder}: bits" for coder in coders)]
    heads += [f"{coder}: {what}, MB/s" for coder in coders if coder != "Huffman" for what in ("encode", "decode")]
    lines = []
    for kind in kinds:
        rows = [found.get((kind, coder)) for coder in coders]
        line = [kind, next(f"{row['entropy']:.3f}" for row in rows if row is not None)]
        line += [DASH if row is None else f"{row['bits']:.3f}" for row in rows]
        for coder, row in zip(coders, rows, strict=True):
            if coder != "Huffman":
                line += [DASH if row is None else f"{row[key]:.3g}" for key in ("encode_mb_s", "decode_mb_s")]
        lines.append(line)
    return markdown(heads, lines, 1)


def lossless_view(results: Results) -> str:
    """One line per network and type of numbers: bytes as they are, as a file, of zipnn, the bound, and seconds."""
    heads = ["network", "raw, MB", ".pare, MB", "zipnn, MB", "bound, MB", "write, s", "read, s"]
    lines = []
    for row in results.rows:
        sizes = [row[key] for key in ("raw", "bytes", "zipnn", "bound")]
        line = [f"{row['network']}, {row['dtype']}", *(DASH if n is None else f"{n / 1e6:.3f}" for n in sizes)]
        lines.append([*line, f"{row['encode']:.2f}", f"{row['decode']:.2f}"])
    return markdown(heads, lines, 1)


BENCH_VIEWS: dict[tuple[str, str], Callable[[Results], str]] = {
    ("removal", "rows"): removal_view,
    ("removal", "failures"): removal_failures_view,
    ("inference", "rows"): inference_view,
    ("inference", "quarter"): inference_quarter_view,
    ("training-speed", "rows"): training_speed_view,
    ("sweep", "rows"): sweep_view,
    ("codec", "rows"): codec_view,
    ("lossless", "rows"): lossless_view,
    ("compress-any", "rows"): compress_any_view,
    ("bits", "rows"): bits_view,
}
