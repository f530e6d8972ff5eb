"""Charts that tests share: the same input gives the same text, and drawing takes a tenth of a second.

Most runs of tests are a few small ones, over and over, and each leaves a page with charts. `Drawn` stands in for the part
of `paring.cli.plots` that draws, but not in `tests/cli/test_page.py`, where charts are what is tested.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Chart = Callable[..., str]


class Drawn:
    """Charts by all that they show, each drawn once.

    Args:
        chart: what draws one; the first argument but one is how, which the others settle.
    """

    def __init__(self, chart: Chart) -> None:
        self._chart = chart
        self._known: dict[str, str] = {}

    def __call__(
        self, kind: str, draw: Callable[[Any], None], data: Mapping[str, Any], *rest: Any, **named: Any
    ) -> str:
        """The SVG text."""
        key = json.dumps([kind, list(data.items()), rest, sorted(named.items())], default=list)
        if key not in self._known:
            self._known[key] = self._chart(kind, draw, data, *rest, **named)
        return self._known[key]
