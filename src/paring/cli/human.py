"""Numbers as people read them; nothing and None become a dash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paring.cost import Comparison

DASH = "–"


def count(value: float | None) -> str:
    """A count: 431,080; from a million on 1.6 M, 12 G."""
    return short(value) if value is not None and abs(value) >= 999_999.5 else exact(value)


def exact(value: float | None) -> str:
    """A count with all its digits: 2,293,000."""
    return DASH if value is None else f"{round(value):,}"


def short(value: float) -> str:
    """A number in three digits: 0.25, 40, 1.6 k, 12 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def percent(value: float | None) -> str:
    """A value that is in percent already: 0.97 %."""
    return DASH if value is None else f"{value:.2f} %"


def share(value: float) -> str:
    """A fraction as percent in two digits, more when nearly whole: 4.1 %, 15 %, 99.7 %."""
    return f"{100 * value:.{1 if value < 0.0995 or 0.985 < value < 1 else 0}f} %"


def change(value: float) -> str:
    """A fraction as a signed percentage: −85 %, +3 %, ±0 %."""
    points = round(100 * value)
    return f"{'±' if points == 0 else '+' if points > 0 else '−'}{abs(points):,} %"


def size(value: float | None) -> str:
    """Bytes in decimal units: 512 B, 44.1 kB, 1.72 MB."""
    if value is None:
        return DASH
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= scale * 0.9995:
            return f"{value / scale:.3g} {unit}"
    return f"{round(value)} B"


def seconds(value: float | None) -> str:
    """A time: 0.35 s, 12.4 s, 3 min 20 s, 2 h 05 min."""
    if value is None:
        return DASH
    if value < 59.95:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def milliseconds(value: float | None) -> str:
    """A short time given in milliseconds: 0.123 ms, 4.56 ms."""
    return DASH if value is None else f"{value:.3g} ms"


def speed_up(found: Comparison) -> dict[str, Any]:
    """A comparison of times as a result keeps it: the ratio (None when nothing can be said), its interval, and the words."""
    return {"ratio": found.said, "low": found.low, "high": found.high, "by": found.by, "text": str(found)}


NUMBERS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("error", "test error", percent),
    ("validation_error", "validation error", percent),
    ("train_error", "training error", percent),
    ("parameters", "parameters", count),
    ("nonzeros", "nonzeros", count),
    ("macs", "MACs per example", count),
    ("bytes", "bytes", size),
    ("latency_ms", "latency, batch 1", milliseconds),
    ("latency_128_ms", "latency, batch 128", milliseconds),
    ("train_seconds", "training time", seconds),
)
"""Keys of a result that compare two networks: what each is called and how it is written."""
