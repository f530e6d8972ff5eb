"""The table of a network, layer by layer: units, weight shape, parameters, nonzeros, MACs, bytes, and measured time."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from paring.core import Inputs, unwrapped
from paring.cost.actual import Measured, measure
from paring.cost.latency import Latency
from paring.cost.latency import latency as time_nets

_HEADS = ("layer", "kind", "units", "weight", "parameters", "nonzeros", "MACs", "bytes")
_TOTALS = ("parameters", "nonzeros", "macs", "bytes")


@dataclass(frozen=True)
class CostReport:
    """A measured network; ``str()`` is a plain-text table, ``to_dict()`` the same for machines."""

    title: str
    measured: Measured
    latency: Latency | None = None
    batch: int | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per module that owns something; unknown numbers are None."""
        return [asdict(row) for row in self.measured.rows]

    @property
    def total(self) -> dict[str, int | None]:
        """Sums over the rows: parameters, nonzeros, macs, adds, bytes."""
        return {key: getattr(self.measured, key) for key in (*_TOTALS, "adds")}

    def to_dict(self) -> dict[str, Any]:
        """Title, rows, total, uncounted modules, and the latency with its batch size (None if not measured)."""
        time = None if self.latency is None else {**asdict(self.latency), "batch": self.batch}
        uncounted = list(self.measured.uncounted)
        return {"title": self.title, "rows": self.rows, "total": self.total, "uncounted": uncounted, "latency": time}

    def __str__(self) -> str:
        keys = ("name", "kind", "units", "weight", *_TOTALS)
        body = [[_text(row[key]) for key in keys] for row in self.rows]
        total = ["total", "", "", "", *(_text(self.total[key]) for key in _TOTALS)]
        widths = [max(map(len, column)) for column in zip(_HEADS, *body, total, strict=True)]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        lines = [self.title, _line(_HEADS, widths), rule, *(_line(row, widths) for row in body)]
        lines += [rule, _line(total, widths)]
        if self.measured.uncounted:
            lines.append(f"MACs without {', '.join(self.measured.uncounted)} (no operation that can be counted)")
        if self.latency is not None:
            t = self.latency
            spread = f"{t.p10 * 1e3:.3f} to {t.p90 * 1e3:.3f}"
            setting = f"batch {self.batch}, one thread"
            lines.append(f"latency {t.median_s * 1e3:.3f} ms (10th to 90th percentile {spread}) at {setting}")
        return "\n".join(lines)


def report(net: nn.Module, example: Any = None, *, title: str | None = None, latency: bool = False) -> CostReport:
    """Tabulate ``net``; print the result, or read ``rows``, ``total`` and ``to_dict()``.

    ``example``: an input with a leading batch axis, a tuple of them or a mapping of keyword arguments; without
    it MACs stay unknown. ``title``: default, the class name.
    ``latency``: also time the example's forward pass on one thread. Raises ``ValueError`` when that lacks an example.
    """
    measured = measure(net, example)
    title = title or type(unwrapped(net)).__name__
    if not latency:
        return CostReport(title, measured)
    if example is None:
        raise ValueError("latency=True needs an example input to run; pass report(net, example, latency=True)")
    inputs = Inputs.of(example)
    return CostReport(title, measured, time_nets({"net": net}, inputs)["net"], inputs.tensors[0].shape[0])


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return "x".join(map(str, value)) or "scalar"
    return f"{value:,}" if isinstance(value, int) else str(value) or "(net)"


def _line(cells: list[str] | tuple[str, ...], widths: list[int]) -> str:
    """Words to the left, numbers to the right."""
    pairs = zip(cells, widths, strict=True)
    return "  ".join(c.ljust(w) if i in (0, 1, 3) else c.rjust(w) for i, (c, w) in enumerate(pairs)).rstrip()
