"""`python -m evidence`: the tables of papers, the benchmarks, and the docs made from their results.

Runs from a checkout: results and docs are files of the repository.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from evidence.command_line import bench, docs, table
from paring.cli.command import Command
from paring.cli.dispatch import dispatch

COMMANDS: dict[str, Command] = {
    "table": Command("make a paper's table", table, "the same command goes on from the last checkpoint"),
    "bench": Command("measure speed, paired", bench, "the same command goes on with what is missing"),
    "docs": Command("regenerate the docs' tables from results/", docs),
}

OVERVIEW = """python -m evidence: every table and figure of the docs, from one command each

usage: python -m evidence COMMAND [OPTIONS]        COMMAND --help teaches each command

{commands}

examples:
  python -m evidence table louizos2018-mnist --seeds 3
  python -m evidence bench removal --only resnet20/
  python -m evidence docs
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, as `paring` does."""
    return dispatch("python -m evidence", list(sys.argv[1:] if argv is None else argv), COMMANDS, OVERVIEW)


if __name__ == "__main__":
    sys.exit(main())
