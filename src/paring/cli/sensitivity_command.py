"""`paring sensitivity`: what each group of units costs, and what the loss says when a part of it goes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paring.cli.arguments import read
from paring.cli.blocks import Html, figure, heading, page, paragraph, table, tiles
from paring.cli.command import CommandError, set_threads
from paring.cli.config import digest
from paring.cli.human import DASH, change, count, exact, share
from paring.cli.index_page import PAGE
from paring.cli.job_file import check_there
from paring.cli.plots import bar_chart, line_chart
from paring.cli.prune_command import IMPORTANCES, JOB, ImportanceName, job_of
from paring.cli.prune_progress import GroupsProgress
from paring.cli.prune_result import number
from paring.core import At, Places
from paring.core.printable import printable, printable_lines
from paring.pruning import Search, Sensitivity, sensitivity
from paring.pruning.sensitivity import WITHIN, GroupTrials
from paring.train import write_atomic

NAME = "sensitivity"
_MOST_BARS, _MOST_LINES = 40, 7


@dataclass(frozen=True)
class SensitivityArguments:
    """What to look at.

    Args:
        what: a job file, the folder of a run of `paring train`, or a .safetensors file of a built-in network.
        shares: shares of each group's least important units that go, each group alone.
        at: which units are looked at.
        within: rise of the loss, as a share of it, up to which a cut is said to cost nothing.
        importance: how units are judged.
        batches: how many batches the loss is measured on.
        repair: also measure after what stays has taken over the work of what goes.
        model: the network, where `what` is a file of tensors.
        data: the data set, where `what` is a file of tensors.
        seed: of everything that is random.
        out: folder of the page and the numbers; by default one below `runs`.
        runs: folder of all run folders.
        threads: CPU threads; 0 uses all.
        quiet: show no progress.
        json: print the result as JSON, not as text.
    """

    what: Path
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    at: At = "units"
    within: float = WITHIN
    importance: ImportanceName = "fisher"
    batches: int = 4
    repair: bool = True
    model: str = ""
    data: str = ""
    seed: int = 0
    out: Path | None = None
    runs: Path = Path("runs")
    threads: int = 0
    quiet: bool = False
    json: bool = False


def sensitivity_command(words: Sequence[str]) -> int:
    """Run `paring sensitivity`."""
    options = read(
        SensitivityArguments,
        words,
        first="what",
        prog="paring sensitivity",
        description=(
            "Which layers can be cut, and which not: for each group of units that can only go together its cost, and the loss "
            "when 25, 50 and 75 % of its least important units go, the others being whole. Nothing is trained; a small network "
            "takes seconds, a large one some passes over --batches for each group.\n\nexamples:\n"
            "  paring sensitivity job.py\n"
            "  paring sensitivity job.py --shares 0.5 0.9 --within 0.1\n"
            "  paring sensitivity runs/lenet5_caffe-mnist-dense-…\n\n"
            f"{JOB}\n\n"
            "what comes out: a table, and in a folder below runs/ report.html with the pictures and sensitivity.json."
        ),
    )
    check_there(options.what)
    set_threads(options.threads)
    if not options.within >= 0:
        raise CommandError(f"--within {options.within:g}: a share of the loss, at least 0")
    try:
        search = Search(IMPORTANCES[options.importance], batches=options.batches, repair=options.repair)
    except ValueError as error:
        raise CommandError(str(error)) from error
    if not options.shares or not all(0 < one < 1 for one in options.shares):
        raise CommandError(f"--shares {' '.join(map(str, options.shares))}: shares of a group's units, each in (0, 1)")
    with (
        job_of(options.what, options.model, options.data, options.seed) as job,
        GroupsProgress(printable(job.name), not options.quiet) as progress,
    ):
        found = sensitivity(
            job.net,
            job.batches,
            job.loss,
            example=job.example,
            at=Places.of(options.at),
            shares=options.shares,
            search=search,
            watch=progress.told,
        )
        names = ("shares", "importance", "batches", "repair", "model", "data", "seed")
        settings = {"at": Places.of(options.at).plain, **{name: getattr(options, name) for name in names}}
        key = digest({"job": job.name, "source": job.source, **settings})
    folder = options.out or options.runs / f"{Path(job.name).stem}-{NAME}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    row = {"job": job.name, "settings": settings, **found.to_dict(options.within)}
    write_atomic(folder / f"{NAME}.json", json.dumps(row, indent=2) + "\n")
    write_atomic(folder / PAGE, sensitivity_page(f"paring: what {job.name} can lose", found, options.within))
    print(json.dumps(row, indent=2) if options.json else printable_lines(found.table(options.within)))
    print(f"written to {printable(folder)}: {PAGE}, {NAME}.json", file=sys.stderr)
    return 0


def sensitivity_page(title: str, found: Sensitivity, within: float) -> str:
    """The document. Without matplotlib the figures are left out, and the page says so."""
    free = [row for row in found.rows if found.can_go(row, within) is not None]
    blocks: list[str] = [
        tiles(
            [
                (number(found.loss), "loss", "of the whole network on the batches looked at"),
                (
                    f"{len(free)} of {len(found.rows)}",
                    "groups can be cut",
                    f"alone, the loss rising by at most {share(within)}",
                ),
                (count(found.macs), "MACs", f"{count(found.parameters)} parameters"),
            ]
        ),
        paragraph(
            "Each group is looked at alone, the others stay whole: what two groups lose together is more than what this page says. "
            "Nothing was trained."
        ),
        heading("Pictures"),
    ]
    try:
        blocks += _pictures(found)
    except ImportError as error:
        blocks.append(paragraph(f"The figures are left out: {error}"))
    return page(title, [*blocks, heading("Groups"), _table(found, within)])


def _pictures(found: Sensitivity) -> list[Html]:
    trials = found.rows[0].trials
    middle = len(trials) // 2
    rise = {row: found.rise(row.trials[middle]) for row in found.rows}
    worst = sorted((row for row in found.rows if rise[row] < float("inf")), key=lambda row: -rise[row])
    if not worst:
        return [paragraph("No picture: no loss is finite.")]
    drawn = [row for row in found.rows if row in worst[:_MOST_BARS]]
    bars: dict[str, float | tuple[float, float, float]] = {
        _name(row, place): rise[row] for place, row in enumerate(drawn)
    }
    part = share(trials[middle].share)
    repaired = trials[middle].repaired is not None
    caption = f"Rise of the loss when {part} of the group's units go{', repaired' if repaired else ''}."
    if len(drawn) < len(found.rows):
        caption += f" The {len(drawn)} groups of {len(found.rows)} where it is largest."
    few = [row for row in found.rows if row in worst[:_MOST_LINES]]
    series = {
        _name(row, place): ([0.0, *(t.share for t in row.trials)], [0.0, *map(found.rise, row.trials)])
        for place, row in enumerate(few)
        if all(found.rise(t) < float("inf") for t in row.trials)
    }
    blocks = [figure(bar_chart(bars, "rise of the loss", f"Without {part} of the units"), caption)]
    if series:
        chart = line_chart(
            series, "share of the group's units that goes", "rise of the loss", "The loss against the cut"
        )
        blocks.append(figure(chart, f"The {len(series)} groups where it rises most, each cut alone."))
    return blocks


def _name(row: GroupTrials, place: int) -> str:
    name = row.layers[0] or "(net)"
    name = name if len(name) <= 28 else f"…{name[-27:]} ({place})"
    return name


def _table(found: Sensitivity, within: float) -> Html:
    shares = [trial.share for trial in found.rows[0].trials]
    heads = (
        "units of",
        "units",
        "parameters",
        "MACs",
        *(f"loss without {share(one)}" for one in shares),
        "can go",
        "MACs then",
    )
    body = []
    for row in found.rows:
        best = found.can_go(row, within)
        losses = [
            number(trial.loss) + ("" if trial.repaired is None else f" → {number(trial.repaired)}")
            for trial in row.trials
        ]
        cost = [exact(n) for n in (row.units, row.parameters, row.macs)]
        told = (DASH, DASH) if best is None else (f"{exact(best.gone)} ({share(best.share)})", change(best.macs - 1))
        body.append((", ".join(name or "(net)" for name in row.layers), *cost, *losses, *told))
    return table(heads, body)
