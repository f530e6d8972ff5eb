"""`python -m paring.testing.fuzz FORMAT --seconds N`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from paring.testing.fuzz.fuzzer import campaign, sown
from paring.testing.fuzz.registry import FORMATS, made


def main(words: Sequence[str] | None = None) -> int:
    """Run campaigns; the exit status is 1 when there was a fault."""
    parser = argparse.ArgumentParser(
        prog="python -m paring.testing.fuzz",
        description=(
            "Change files in ways that get past their checksums, read them, and count what happens. Whatever the bytes, reading "
            "ends in what was written or in one clear error. Files that show anything else are kept, with the line that shows "
            "it again; the exit status is 1 then."
        ),
        epilog="examples:\n  python -m paring.testing.fuzz pare --seconds 60\n  python -m paring.testing.fuzz all --seconds 600",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("format", choices=[*FORMATS, "all"], help="what to read; all takes them in turns")
    parser.add_argument("--seconds", type=float, help="how long, all formats together (60 unless --cases is given)")
    parser.add_argument("--cases", type=int, help="how many files of each format")
    parser.add_argument("--sow", action="store_true", help="plant code in every field, one after the other, instead")
    parser.add_argument("--seed", type=int, default=0, help="of the changes; the same seed gives the same files")
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--keep", type=Path, default=Path("fuzz"), help="folder for the files that show faults (fuzz)")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    names = list(FORMATS) if options.format == "all" else [options.format]
    seconds = 60.0 if options.seconds is None and options.cases is None else options.seconds
    faults = 0
    for name in names:
        told = partial(print, file=sys.stderr, flush=True)
        counts = (
            sown(made(name), keep=options.keep, say=told)
            if options.sow
            else campaign(
                made(name),
                seconds=None if seconds is None else seconds / len(names),
                cases=options.cases,
                seed=options.seed,
                start=options.start,
                keep=options.keep,
                say=told,
            )
        )
        print(counts, flush=True)
        faults += counts.faults
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
