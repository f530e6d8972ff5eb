"""The demo over several seeds: the promise of the README, checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evidence.tables.computed import Computed
from paring.cli import demo
from paring.cli.config import digest
from paring.cli.results import Results, load


def _run(results: Path, runs: Path, seeds: int, command: str) -> None:
    path = results / f"{DEMO.name}.json"
    found = replace(load(path), command=command) if path.exists() else Results(DEMO.name, command)
    settings = digest((demo.MODEL, demo.DATA, demo.METHOD, demo.RECIPE))
    known = {row.get("run") for row in found.rows}
    for seed in range(seeds):
        name = f"{settings}/{seed}"
        if name not in known:
            found = found.merge({"run": name, "source": "measured", **demo.run(runs / f"demo-{seed}", seed)})
            found.save(path)


DEMO = Computed("demo-seeds", "the demo over several seeds", _run)
