"""The `paring` command. Every subcommand is a frozen dataclass read by tyro; the methods and the recipe are the API's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from paring.cli.command import Command
from paring.cli.dispatch import dispatch

TOP = """paring: make PyTorch networks small

a trained network, at half of its arithmetic:
  paring prune --init job.py
  paring prune job.py --macs 0.5 --epochs 5

usage: paring COMMAND [OPTIONS]        paring COMMAND --help teaches each command

{commands}

examples:
  paring demo
  paring sensitivity job.py
  paring train --model lenet_300_100 --data mnist --method l0 --at inputs --price 1.7e-6 --epochs 20
  paring train --model lenet5 --data mnist --method l0 --at units:Conv2d inputs:Linear --price budget:macs=0.25
  paring sweep --method gmp --vary density=0.5,0.2,0.1 seed=0,1,2 --workers 2
  paring report runs/demo
"""


def _late(name: str) -> Callable[[Sequence[str]], int]:
    """The command of this name, imported when it is run: the overview needs no torch."""

    def run(words: Sequence[str]) -> int:
        from paring.cli.commands import RUNS

        return RUNS[name](words)

    return run


COMMANDS: dict[str, Command] = {
    "demo": Command("train, shrink and prove, on real digits, in a minute", _late("demo")),
    "prune": Command(
        "make a trained network smaller, as small as asked, resumable",
        _late("prune"),
        "the same command goes on from the last epoch",
    ),
    "sensitivity": Command("what each group of units costs, and what its loss would do", _late("sensitivity")),
    "train": Command(
        "train one network with one method, resumable",
        _late("train"),
        "the same command goes on from the last checkpoint",
    ),
    "sweep": Command(
        "train a grid of settings, several at a time, resumable",
        _late("sweep"),
        "the same command goes on: finished trials are kept, stopped ones go on from their last epoch",
    ),
    "tickets": Command("look for lottery tickets, train them in isolation, and judge", _late("tickets")),
    "report": Command("layer by layer, what a run kept", _late("report")),
    "pack": Command("write a network to a .pare file, losing nothing or within a bound on the loss", _late("pack")),
    "unpack": Command("decode a .pare file into a .safetensors file", _late("unpack")),
    "info": Command("tensor by tensor, what a .pare file holds and costs", _late("info")),
    "data": Command("list, fetch and check the data sets", _late("data")),
}


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
