"""`paring tickets`: the options of `paring train`, seeds and controls, and the verdict."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from paring.cli.command import CommandError, set_threads
from paring.cli.config import digest
from paring.cli.results import Results
from paring.cli.tickets.protocol import Plan, run_plan
from paring.cli.tickets.show import lines, tickets_page
from paring.cli.tickets.verdict import Verdict
from paring.cli.vary import read_grid
from paring.methods import Dense
from paring.train import write_atomic

_DESCRIPTION = (
    "Look for lottery tickets: train dense networks, search for masks with a method, train every mask in isolation from "
    "its rewind point, and say which subnetworks match the dense network, which is the sparsest and the best, and what "
    "it cost. Finished trainings are not done again; the same command goes on where it was stopped.\n\n"
    "Iterative magnitude pruning (imp) gives a subnetwork per round. Of any other method with gates on weights each variant "
    "(--vary density=0.5,0.2) is a search of its own, and its final mask is the ticket.\n\n"
    "examples:\n"
    "  paring tickets --method imp --prunings 6 --rewind 1ep --epochs 3\n"
    "  paring tickets --data mnist --method imp --prunings 12 --rewind 0 --controls reinit shuffled --epochs 10\n"
    "  paring tickets --data mnist --method continuous_sparsification --vary density=0.5,0.2,0.1 --ticket none --epochs 10\n"
    "  paring tickets --data mnist --method at_init --score snip --vary density=0.5,0.2,0.1 --epochs 10\n"
)


@dataclass(frozen=True)
class TicketArguments:
    """How often, against what, and where the verdict goes.

    Args:
        seeds: trainings of everything, seeds 0 to seeds - 1.
        controls: "reinit" (other initial weights under the same mask), "shuffled" (the same weights under a random mask
            with the same layer-wise densities).
        vary: NAME=V1,V2,... for options of the method that take several values, a search each.
        name: of the verdict's files; empty makes one of the model, the data, the method and a hash.
        results: folder of the verdict's files.
    """

    seeds: int = 3
    controls: tuple[Literal["reinit", "shuffled"], ...] = ()
    vary: tuple[str, ...] = ()
    name: str = ""
    results: Path = Path("runs/tickets")


def run(words: Sequence[str]) -> int:
    """The command."""
    if not any(word.partition("=")[0] in ("--method", "method") for word in words):
        words = ["--method", "imp", *words]
    grid, what, options = read_grid(words, prog="paring tickets", description=_DESCRIPTION, first=TicketArguments)
    first = grid[0]
    shared = ("model", "data", "recipe", "validation")
    if any(getattr(one, name) != getattr(first, name) for one in grid for name in shared):
        raise CommandError("--vary: only options of the method; every search has the same network, data and recipe")
    if any(type(one.method) is Dense for one in grid):
        raise CommandError("--method dense: finds no subnetwork; try imp, continuous_sparsification, gmp, at_init")
    try:
        methods = tuple(one.method for one in grid)
        plan = Plan(
            first.model, first.data, methods, first.recipe, options.seeds, tuple(options.controls), what.validation
        )
    except ValueError as error:
        raise CommandError(str(error)) from error
    name = options.name or f"{first.model}-{first.data}-{first.label}-{digest(plan)}"
    if Path(name).name != name or name.startswith("."):
        raise CommandError(f"--name {name}: a file name without folders; the folder is --results")
    set_threads(what.threads)
    options.results.mkdir(parents=True, exist_ok=True)
    rows, verdict = run_plan(plan, what.runs, progress=not what.quiet)
    command = shlex.join(["paring", "tickets", *words])
    path = _write(options.results / f"{name}.json", command, rows, verdict)
    print("\n".join(lines(verdict)))
    print(f"written to {path} (and .html)", file=sys.stderr)
    return 0


def _write(path: Path, command: str, rows: Sequence[dict[str, Any]], verdict: Verdict) -> Path:
    results = Results(path.stem, command)
    for number, row in enumerate(rows):
        parts = (row["control"], row["level"], row["seed"])
        results = results.merge(row | {"run": "/".join(map(str, parts)) if "level" in row else str(number)})
    sparsest = verdict.sparsest
    answers = {
        "bar": verdict.bar,
        "sparsest": None if sparsest is None else asdict(sparsest),
        "best": asdict(verdict.best),
    }
    judged = {"run": "verdict", "source": "measured", "control": "verdict", **asdict(verdict), **answers}
    results.merge(judged).save(path)
    page = tickets_page(f"tickets {path.stem}", verdict, rows, results.made())
    write_atomic(path.with_suffix(".html"), page)
    return path
