"""The `paring` command. Every subcommand is a frozen dataclass read by tyro; the methods and the recipe are the API's own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from paring.cli.commands import COMMANDS
from paring.cli.dispatch import dispatch

TOP = """paring: train networks that come out small

usage: paring COMMAND [OPTIONS]        paring COMMAND --help teaches each command

{commands}

examples:
  paring demo
  paring train --model lenet_300_100 --data mnist --method l0 --at inputs --price 1.7e-6 --epochs 20
  paring train --model lenet5 --data mnist --method l0 --at units:Conv2d inputs:Linear --price budget:macs=0.25
  paring sweep --method gmp --vary density=0.5,0.2,0.1 seed=0,1,2 --workers 2
  paring report runs/demo
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 the command line was wrong, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] == "--version":
        from paring import __version__

        print(f"paring {__version__}")
        return 0
    return dispatch("paring", words, COMMANDS, TOP)


if __name__ == "__main__":
    sys.exit(main())
