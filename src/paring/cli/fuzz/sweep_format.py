"""The table of a sweep, read as a sweep that goes on reads it, to its CSV and its page."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paring.cli.fuzz.result_format import ROW, changed_json, planted_json
from paring.cli.results import ResultsError, load
from paring.cli.sweep.rows import CONFIG, as_csv
from paring.cli.sweep.sweep_page import sweep_page
from paring.testing.fuzz.format import Case, Format, Seed

FILE = "grid.json"


class Sweep(Format):
    """Results files of a grid: changed bytes and values. There is no checksum, so other numbers are as good."""

    name = "sweep"
    errors = (ResultsError,)

    def seeds(self) -> list[Seed]:
        rows = [
            ROW | {"run": f"{rate}/{seed}", "seed": seed, CONFIG: _config(rate, seed)}
            for rate in (0.5, 0.1)
            for seed in (0, 1)
        ]
        table = {
            "name": "grid", "command": "paring sweep --vary rate=0.5,0.1 seed=0,1", "date": "2026-01-31",
            "machine": {"cpu": "x", "cores": 2}, "versions": {"torch": "2"}, "rows": rows,
        }  # fmt: skip
        data = json.dumps(table).encode()
        return [Seed("rows", {FILE: data}, _read), Seed("pages", {FILE: data}, _read_to_a_page, 0.05)]

    def changed(self, seed: Seed, chance: random.Random) -> Case:
        return Case({FILE: changed_json(seed.files[FILE], chance)}, forged=True)

    def planted(self, seed: Seed, every: int = 1) -> Iterator[Case]:
        return planted_json(seed, FILE, every)


def _config(rate: float, seed: int) -> dict[str, Any]:
    method = {"type": "IMP", "rate": rate, "at": ["weights"]}
    return {
        "type": "Experiment",
        "model": "lenet_300_100",
        "method": method,
        "recipe": {"type": "Recipe", "seed": seed},
    }


def _read(folder: Path) -> object:
    results = load(folder / FILE)
    return results.to_dict(), as_csv(results.rows), results.made()


def _read_to_a_page(folder: Path) -> object:
    return sweep_page(load(folder / FILE))
