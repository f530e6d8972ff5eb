"""Tables of `python -m evidence table ftprop-toy` in the docs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from paring.cli.grid import markdown
from paring.cli.human import DASH, seconds, share
from paring.cli.results import Results, Row

_OUTCOMES = {
    "found by search": "found",
    "found by enumeration": "found by enumeration",
    "infeasible": "proved infeasible",
    "notfound": "not found",
}


def _part(results: Results, part: str) -> list[Row]:
    return [row for row in results.rows if row.get("part") == part]


def _tasks(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows))


def _share(value: float | None) -> str:
    return DASH if value is None else share(value)


def _mean(rows: Sequence[Row], key: str) -> float | None:
    found = [row[key] for row in rows if row.get(key) is not None]
    return statistics.fmean(found) if found else None


def search_view(results: Results) -> str:
    """One line per task: outcomes over seeds, medians of programmes and seconds, least margin."""
    rows = _part(results, "search")
    lines = []
    for task in _tasks(rows):
        mine = [row for row in rows if row["task"] == task]
        counts = {text: sum(row["outcome"] == outcome for row in mine) for outcome, text in _OUTCOMES.items()}
        told = ", ".join(f"{text} {count}/{len(mine)}" for text, count in counts.items() if count)
        margins = [row["margin"] for row in mine if row["margin"] is not None]
        programmes = f"{statistics.median(row['programmes'] for row in mine):.0f}"
        spent = seconds(statistics.median(row["seconds"] for row in mine))
        lines.append((task, told, programmes, spent, f"{min(margins):.2g}" if margins else DASH))
    return markdown(("task", "outcome", "programmes", "time", "least margin"), lines, 2)


def training_view(results: Results) -> str:
    """One line per variant, one column per task: seeds that came to zero training error, and the median of batches."""
    rows = _part(results, "training")
    tasks, found = _tasks(rows), {(row["variant"], row["task"]): row for row in rows}
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [found.get((variant, task)) for task in tasks]
        solved = sum(row["solved"] for row in mine if row)
        lines.append((variant, *map(_solved, mine), f"{solved}/{sum(row['seeds'] for row in mine if row)}"))
    return markdown(("variant", *tasks, "all"), lines)


def _solved(row: Row | None) -> str:
    if row is None:
        return DASH
    return f"{row['solved']}/{row['seeds']}" + (f" ({row['batches']:.0f})" if row["solved"] else "")


def targets_view(results: Results) -> str:
    """One line per task: the heuristic against feasible targets and against all patterns."""
    lines = []
    for row in _part(results, "targets"):
        losses = [row[f"brute_{key}"] for key in ("loss", "targets", "best", "random")]
        lines.append(
            (
                row["task"],
                *(_share(row.get(f"feasible_{key}")) for key in ("changed", "agreement", "kept", "feasible")),
                *(_share(row[f"brute_{key}"]) for key in ("kept", "agreement", "beaten")),
                *(f"{loss:.3f}" for loss in losses),
            )
        )
    heads = ["task", "changed by Algorithm 1", "of these, heuristic agrees", "of the kept, agrees"]
    heads += ["units with feasible targets", "present outputs as in a best pattern", "targets as in a best pattern"]
    heads += ["patterns no better than the targets", "loss now", "at targets", "best", "mean of all"]
    return markdown(heads, lines)


def network_view(results: Results) -> str:
    """One line per layer and epoch, means over seeds: right and captured, by |G|, and losses after adoption."""
    rows = _part(results, "network")
    lines = []
    for epoch, depth in sorted({(row["epoch"], row["depth"]) for row in rows}):
        mine = [row for row in rows if (row["epoch"], row["depth"]) == (epoch, depth)]
        parts = [_quarters(mine, key) for key in ("right_by_size", "captured_by_size")]
        whole = [_share(_mean(mine, key)) for key in ("right", "captured")]
        moved = [_adopted(mine, index) for index in range(len(mine[0]["adopted"]))]
        lines.append(
            (str(depth), str(epoch), whole[0], parts[0], whole[1], parts[1], f"{_mean(mine, 'loss'):.3f}", *moved)
        )
    shares = [entry["share"] for entry in rows[0]["adopted"]] if rows else []
    heads = [
        "layer",
        "epoch",
        "right",
        "right, by quarters of gradient size",
        "captured",
        "captured, by quarters",
        "loss now",
    ]
    heads += [f"{share(part)} moved to targets / at random" for part in shares]
    return markdown(heads, lines, 2)


def _quarters(rows: Sequence[Row], key: str) -> str:
    columns = zip(*(row[key] for row in rows), strict=True)
    found = [[value for value in column if value is not None] for column in columns]
    return " ".join(f"{100 * statistics.fmean(column):.0f}" if column else DASH for column in found) + " %"


def _adopted(rows: Sequence[Row], index: int) -> str:
    pairs = [(row["adopted"][index]["targets"], row["adopted"][index]["random"]) for row in rows]
    means = [statistics.fmean(side) for side in zip(*pairs, strict=True)]
    return " / ".join(f"{mean:.3f}" for mean in means)


FTPROP_VIEWS: dict[tuple[str, str], Callable[[Results], str]] = {
    ("ftprop-toy", "rows"): search_view,
    ("ftprop-toy", "training"): training_view,
    ("ftprop-toy", "targets"): targets_view,
    ("ftprop-toy", "network"): network_view,
}
