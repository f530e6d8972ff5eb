"""The tables of `bench census`: a summary by package, and every architecture."""

from __future__ import annotations

from collections.abc import Callable

from paring.cli.grid import markdown
from paring.cli.results import Results, Row

_ENOUGH = 0.95  # of what closed gates count as gone


def summary_view(results: Results) -> str:
    """One line per package, and one for all."""
    packages = sorted({row["package"].split(".")[0] for row in results.rows})
    lines = [_counts(name, [row for row in results.rows if row["package"].split(".")[0] == name]) for name in packages]
    heads = (
        "package",
        "architectures",
        "captured",
        "gated",
        "exact",
        "95 % of the possible goes",
        "module form",
        "budget met or refused",
        "file",
        "trains",
        "ONNX",
        "Torch-Pruning right",
    )
    return markdown(heads, [*lines, _counts("**all**", list(results.rows))])


def _counts(name: str, rows: list[Row]) -> list[str]:
    done = [row for row in rows if row["status"] == "done"]

    def of(test: Callable[[Row], bool]) -> str:
        return f"{sum(map(test, done))} of {len(done)}"

    return [
        name,
        str(len(rows)),
        f"{sum(bool(row.get('captured')) for row in rows)} of {len(rows)}",
        f"{len(done)} of {len(rows)}",
        of(lambda row: row["exact"]),
        of(lambda row: row["removed"] >= _ENOUGH * row["possible"]),
        of(lambda row: row["form"] == "module"),
        of(lambda row: row["budget"] == "met" or row["budget"].startswith("refused")),
        of(lambda row: row["saved"] == "same"),
        of(lambda row: row["trains"] == "steps"),
        of(lambda row: row["onnx"] == "agrees"),
        of(lambda row: str(row.get("torch_pruning", "")).startswith("right")),
    ]


def rows_view(results: Results) -> str:
    """One line per architecture; what is not as it should be in words."""
    heads = ("architecture", "package", "groups gated", "removed", "possible", "form", "CPU seconds", "what is not so")
    return markdown(
        heads, [_line(row) for row in sorted(results.rows, key=lambda row: (row["package"], row["run"]))], 2
    )


def _line(row: Row) -> list[str]:
    name, package = row["run"], f"{row['package'].split('.')[0]} {row.get('version', '')}".strip()
    if row["status"] != "done":
        return [name, package, "–", "–", "–", "–", "–", _short(row["status"])]
    wrong = [] if row["exact"] else [f"differs by {row['error']:.1e}"]
    if row["removed"] < _ENOUGH * row["possible"]:
        wrong.append(f"kept: {'; '.join(row['kept'])}")
    good = {"budget": "met", "saved": "same", "trains": "steps", "onnx": "agrees"}
    wrong += [f"{name}: {row[name]}" for name, right in good.items() if row[name] != right]
    return [
        name,
        package,
        f"{row['gateable']} of {row['groups']}",
        f"{row['removed']:.1%}".replace("%", " %"),
        f"{row['possible']:.1%}".replace("%", " %"),
        row["form"],
        f"{row['seconds']:.1f}",
        _short(". ".join(wrong)),
    ]


def _short(text: str) -> str:
    text = text.replace("|", "/").replace("<", "").replace("\n", " ")
    return text if len(text) <= 160 else text[:159] + "…"


CENSUS_VIEWS: dict[tuple[str, str], Callable[[Results], str]] = {
    ("census", "rows"): rows_view,
    ("census", "summary"): summary_view,
}
