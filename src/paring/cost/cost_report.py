"""The table of a network, layer by layer: units, weight shape, parameters, nonzeros, MACs, bytes, and measured time.

With `before=`, the network it came from, every number is shown as before → after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from paring.core import Inputs, unwrapped
from paring.cost.actual import Measured, measure
from paring.cost.latency import Latency
from paring.cost.latency import latency as time_nets
from paring.cost.speed_up import compare

_HEADS = ("layer", "kind", "units", "weight", "parameters", "nonzeros", "MACs", "bytes")
_TOTALS = ("parameters", "nonzeros", "macs", "bytes")
_LEGEND = (
    "a → b: before and after, one number: as it was, '-': not there or not known. units: outputs of the layer; "
    "MACs: for one example; bytes: of the tensors, not of a packed file"
)


@dataclass(frozen=True)
class CostReport:
    """A measured network; ``str()`` is a plain-text table, ``to_dict()`` the same for machines.

    ``before``, ``latency_before``: of the network it came from, measured alike; None where none was given.
    """

    title: str
    measured: Measured
    latency: Latency | None = None
    batch: int | None = None
    before: Measured | None = None
    latency_before: Latency | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per module that owns something; unknown numbers are None."""
        return [asdict(row) for row in self.measured.rows]

    @property
    def total(self) -> dict[str, int | None]:
        """Sums over the rows: parameters, nonzeros, macs, adds, bytes."""
        return {key: getattr(self.measured, key) for key in (*_TOTALS, "adds")}

    def to_dict(self) -> dict[str, Any]:
        """Title, rows, total, uncounted modules, and the latency with its batch size (None if not measured).

        "before" holds the same of the network it came from, where one was given.
        """
        time = None if self.latency is None else {**asdict(self.latency), "batch": self.batch}
        uncounted = list(self.measured.uncounted)
        told = {"title": self.title, "rows": self.rows, "total": self.total, "uncounted": uncounted, "latency": time}
        if self.before is not None:
            told["before"] = CostReport(self.title, self.before, self.latency_before, self.batch).to_dict()
        return told

    def __str__(self) -> str:
        return self._alone() if self.before is None else self._compared(self.before)

    def _compared(self, before: Measured) -> str:
        """Every layer of either network, in the order of the first."""
        old, new = ({row.name: row for row in one.rows} for one in (before, self.measured))
        keys = ("units", *_TOTALS)
        body = []
        for name in dict.fromkeys([*old, *new]):
            kind = " → ".join(dict.fromkeys(rows[name].kind for rows in (old, new) if name in rows))
            pairs = [[getattr(rows[name], key) if name in rows else None for rows in (old, new)] for key in keys]
            body.append([name or "(net)", kind, *(_step(*pair) for pair in pairs)])
        shares = [_share(getattr(before, key), getattr(self.measured, key)) for key in _TOTALS]
        total = ["total", "", "", *(_step(getattr(before, key), getattr(self.measured, key)) for key in _TOTALS)]
        heads = ("layer", "kind", "units", "parameters", "nonzeros", "MACs", "bytes")
        lines = [heads, *body, total, ["left", "", "", *shares]]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [_line(line, widths, words=2) for line in lines]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        told = [self.title, text[0], rule, *text[1:-2], rule, *text[-2:]]
        if self.latency is not None and self.latency_before is not None:
            one, other = self.latency_before, self.latency
            told.append(
                f"latency {one.median_s * 1e3:.3f} → {other.median_s * 1e3:.3f} ms at batch {self.batch}, one thread; "
                f"speed {compare(one, other)}"
            )
        return "\n".join([*told, *self._left_out(), _LEGEND])

    def _left_out(self) -> list[str]:
        left = dict.fromkeys([*(self.before.uncounted if self.before is not None else ()), *self.measured.uncounted])
        return [f"MACs without {', '.join(left)} (no operation that can be counted)"] if left else []

    def _alone(self) -> str:
        keys = ("name", "kind", "units", "weight", *_TOTALS)
        body = [[_text(row[key]) for key in keys] for row in self.rows]
        total = ["total", "", "", "", *(_text(self.total[key]) for key in _TOTALS)]
        widths = [max(map(len, column)) for column in zip(_HEADS, *body, total, strict=True)]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        lines = [self.title, _line(_HEADS, widths), rule, *(_line(row, widths) for row in body)]
        lines += [rule, _line(total, widths)]
        lines += self._left_out()
        if self.latency is not None:
            t = self.latency
            spread = f"{t.p10 * 1e3:.3f} to {t.p90 * 1e3:.3f}"
            setting = f"batch {self.batch}, one thread"
            lines.append(f"latency {t.median_s * 1e3:.3f} ms (10th to 90th percentile {spread}) at {setting}")
        return "\n".join(lines)


def report(
    net: nn.Module,
    example: Any = None,
    *,
    before: nn.Module | None = None,
    title: str | None = None,
    latency: bool = False,
) -> CostReport:
    """Tabulate ``net``; print the result, or read ``rows``, ``total`` and ``to_dict()``.

    ``example``: an input with a leading batch axis, a tuple of them or a mapping of keyword arguments; without
    it MACs stay unknown. ``before``: the network that it came from, to see every number before and after.
    ``title``: default, the class name.
    ``latency``: also time the example's forward pass on one thread. Raises ``ValueError`` when that lacks an example.
    """
    measured, first = measure(net, example), None if before is None else measure(before, example)
    title = title or type(unwrapped(net)).__name__
    if not latency:
        return CostReport(title, measured, before=first)
    if example is None:
        raise ValueError("latency=True needs an example input to run; pass report(net, example, latency=True)")
    inputs = Inputs.of(example)
    times = time_nets({"net": net} if before is None else {"net": net, "before": before}, inputs)
    return CostReport(title, measured, times["net"], inputs.tensors[0].shape[0], first, times.get("before"))


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return "x".join(map(str, value)) or "scalar"
    return f"{value:,}" if isinstance(value, int) else str(value) or "(net)"


def _step(before: int | None, after: int | None) -> str:
    return _text(after) if before == after else f"{_text(before)} → {_text(after)}"


def _share(before: int | None, after: int | None) -> str:
    return f"{after / before:.1%}" if before and after is not None else "-"


def _line(cells: Sequence[str], widths: list[int], words: int = 0) -> str:
    """Words to the left, numbers to the right: the first ones, or name, kind and shape."""
    pairs = zip(cells, widths, strict=True)
    left = range(words) if words else (0, 1, 3)
    return "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(pairs)).rstrip()
