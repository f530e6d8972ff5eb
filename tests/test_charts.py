"""What `tests/charts.py` shares is what is drawn anew, and all that a chart shows keeps two apart."""

from __future__ import annotations

import sys
from typing import Any

import pytest

pytest.importorskip("matplotlib")
from paring.cli.plots import bar_chart, line_chart, scatter_chart
from tests.charts import Drawn

POINTS = [1.0, 2.0, 3.0], [0.5, 0.25, 0.125]


def drawn() -> list[str]:
    """Charts that differ in one thing each from the first of their kind."""
    line: dict[str, Any] = {"series": {"a": POINTS}, "xlabel": "x", "ylabel": "y", "title": "t"}
    bars: dict[str, Any] = {"bars": {"a": 1.0, "l0": (2.0, 1.0, 3.0)}, "xlabel": "x", "title": "t"}
    lines: list[dict[str, Any]] = [
        {},
        {"series": {"b": POINTS}},
        {"series": {"a": POINTS[::-1]}},
        {"series": {"a": (*POINTS, *POINTS)}},
        {"ylabel": "z"},
        {"title": "z"},
        {"logy": True},
        {"percent": True},
        {"atoms": ("a",)},
        {"levels": {"dense": 0.2}},
    ]
    more: list[dict[str, Any]] = [
        {},
        {"bars": {"a": 1.0}},
        {"reference": 1.0},
        {"methods": {"a": "l0"}},
    ]
    return [
        *(line_chart(**line | one) for one in lines),
        *(bar_chart(**bars | one) for one in more),
        scatter_chart(**line),
    ]


def test_shared_charts_are_those_that_are_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    plots = sys.modules["paring.cli.plots"]
    monkeypatch.undo()  # what all tests share
    anew = drawn()
    asked: list[str] = []

    def chart(kind: str, *given: Any, **named: Any) -> str:
        asked.append(kind)
        return str(real(kind, *given, **named))

    real = plots._chart
    assert not isinstance(real, Drawn)
    monkeypatch.setattr(plots, "_chart", Drawn(chart))
    assert drawn() == drawn() == anew
    assert len(asked) == len(anew) == len(set(anew))


def test_names_that_cannot_be_drawn_are_escaped() -> None:
    assert "\udc80" not in bar_chart({"a\udc80": 1.0, "b": 2.0}, xlabel="x\udc81", title="t\udc82")
    assert "\udc80" not in line_chart({"a\udc80": ([1.0, 2.0], [1.0, 2.0])}, xlabel="x", ylabel="\udc81", title="t")
