"""The table of `bench prune`: trained networks made smaller in several ways, with paired differences over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evidence.comparison import told
from paring.cli.grid import NETWORKS, key_column, markdown, stat_column
from paring.cli.human import DASH, exact, percent
from paring.cli.results import Group, Results, Row, summarise

OURS = "paring"
_KEYS = ("model", "data", "budget", "method")
_VALUES = ("error", "cut_error", "dense_error", "macs", "parameters", "search_cpu_seconds")
NETS = {
    **NETWORKS,
    "resnet8": "ResNet-8",
    "mobile": "MobileNet (small)",
    "vit": "ViT",
    "gpt": "GPT",
    "gpt-1m": "GPT, 1M",
}


def prune_view(results: Results) -> str:
    """One line per network, budget and way; the last column is ours minus it, with its 95 % interval over paired seeds."""
    groups = summarise(results.rows, _KEYS, _VALUES)
    networks = list(dict.fromkeys(group.key["model"] for group in groups))
    groups.sort(key=lambda g: (networks.index(g.key["model"]), -g.key["budget"]))
    columns = [
        key_column("network", "model", NETS),
        ("asked MACs", True, _budget),
        key_column("way", "method"),
        stat_column("dense (test)", "dense_error", _error),
        stat_column("after the cut (validation)", "cut_error", _error),
        stat_column("trained on (test)", "error", _error),
        ("paring minus this", False, lambda group: difference(_ours(results, group), group.rows)),
        stat_column("parameters", "parameters", exact),
        stat_column("CPU seconds to cut", "search_cpu_seconds", _whole),
    ]
    lines = [[text(group) for _, _, text in columns] for group in groups]
    return markdown([head for head, _, _ in columns], lines, 3)


def _budget(group: Group) -> str:
    return _share(group.key["budget"])


def _error(value: float | None) -> str:
    return percent(value).removesuffix(" %")


def _ours(results: Results, group: Group) -> list[Row]:
    if group.key["method"] == OURS or group.key["budget"] == 1.0:
        return []
    wanted = {**group.key, "method": OURS}
    return [row for row in results.rows if all(row.get(key) == value for key, value in wanted.items())]


def difference(ours: Sequence[Row], theirs: Sequence[Row], of: str = "error", digits: int = 2) -> str:
    """Mean difference at the same seeds, and its 95 % interval by Student's t."""
    mine, other = ({row["seed"]: row[of] for row in rows} for rows in (ours, theirs))
    return told(mine, other, digits)


def sentences_view(results: Results) -> str:
    """One line per budget and way of a sentence encoder; the last column is our cosine minus theirs over paired seeds."""
    qualities = ("cosine", "rank_correlation", "neighbours")
    groups = summarise(
        results.rows, ("budget", "method"), ("cut_cosine", *qualities, "parameters", "search_cpu_seconds")
    )
    columns = [
        ("asked MACs", True, _budget),
        key_column("way", "method"),
        stat_column("cosine after the cut (validation)", "cut_cosine", _third),
        stat_column("cosine (test)", "cosine", _third),
        stat_column("rank correlation", "rank_correlation", _third),
        stat_column("10 nearest kept", "neighbours", _third),
        ("paring minus this", False, lambda group: difference(_ours(results, group), group.rows, "cosine", 3)),
        stat_column("parameters", "parameters", exact),
        stat_column("CPU seconds to cut", "search_cpu_seconds", _whole),
    ]
    lines = [[text(group) for _, _, text in columns] for group in groups]
    return markdown([head for head, _, _ in columns], lines, 2)


def _third(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def _whole(value: float | None) -> str:
    return DASH if value is None else f"{value:.0f}"


def times_view(results: Results) -> str:
    """What the networks that were cut take, as shares of the dense network's: an answer and a training step."""
    rows = [row for row in results.rows if "step" in row]
    lines = [
        [
            _network(row),
            str(row["method"]),
            _share(row["macs"]),
            _share(row["latency"]),
            _share(row["step"]),
        ]
        for row in sorted(rows, key=lambda row: (_order(row), -row["budget"]))
    ]
    return markdown(["network", "way", "MACs", "time of an answer", "time of a step"], lines, 2)


def latencies_view(results: Results) -> str:
    """Budgets of latency: asked, predicted from the table of layers, measured."""
    rows = [row for row in results.rows if "predicted" in row]
    lines = [
        [_network(row), *(_share(row[name]) for name in ("budget", "predicted", "latency"))]
        for row in sorted(rows, key=lambda row: (_order(row), -row["budget"]))
    ]
    return markdown(["network", "asked", "predicted", "measured"], lines, 1)


def _network(row: Row) -> str:
    return str(NETS.get(row["model"], row["model"]))


def _order(row: Row) -> int:
    names = list(NETS)
    return names.index(row["model"]) if row["model"] in names else len(names)


def _share(value: float) -> str:
    return f"{value:.0%}".replace("%", " %")


PRUNE_VIEWS: dict[tuple[str, str], Callable[[Results], str]] = {
    ("prune", "rows"): prune_view,
    ("prune-sentences", "rows"): sentences_view,
    ("prune-times", "rows"): times_view,
    ("prune-times", "latency"): latencies_view,
}
