"""`runs/index.html`: all finished runs of a folder, newest first, with links to their pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paring.cli.blocks import Html, linked_table, page, paragraph
from paring.cli.human import DASH, NUMBERS, share
from paring.cli.reading import RunError, read_result
from paring.train import write_atomic

RESULT, PAGE, INDEX = "result.json", "report.html", "index.html"
_KEYS = ("error", "parameters", "macs", "bytes", "train_seconds")


def write_index(root: Path) -> Path:
    """List the finished runs below a folder; those whose result cannot be read are named as such.

    Args:
        root: folder of run folders.
    """
    found = [folder / RESULT for folder in root.iterdir() if (folder / RESULT).is_file()] if root.is_dir() else []
    found.sort(key=lambda path: (-path.stat().st_mtime_ns, path.parent.name))
    columns = [(key, label, text) for key, label, text in NUMBERS if key in _KEYS]
    rows: list[tuple[str, ...]] = []
    links: list[str] = []
    for path in found:
        row = _read(path)
        inside = row.get("small")
        small: dict[str, Any] = inside if isinstance(inside, dict) else row
        part = DASH
        if small.get("parameters") and row.get("dense_parameters"):
            part = share(small["parameters"] / row["dense_parameters"])
        cells = [text(small.get(key)) for key, _, text in columns]
        name = path.parent.name
        rows.append((name if row else f"{name} (cannot be read)", *cells, part))
        links.append(f"{name}/{PAGE}" if (path.parent / PAGE).is_file() else "")
    headers = ("run", *(label for _, label, _ in columns), "share of dense")
    blocks: list[Html] = [paragraph(f"{len(rows)} finished runs, newest first.")]
    if rows:
        blocks.append(linked_table(headers, rows, links))
    write_atomic(root / INDEX, page("paring: runs", blocks))
    return root / INDEX


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_result(path) or {}
    except RunError:
        return {}
