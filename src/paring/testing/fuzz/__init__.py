"""Hostile files: whatever the bytes, reading ends in what was written or in one clear error of ours.

    python -m paring.testing.fuzz pare --seconds 60
    python -m paring.testing.fuzz all --seconds 600

`--sow` plants code in every field of every file instead.

A `Format` gives whole files (`Seed`) and changes them (`Case`); `campaign` reads what came out and counts:

* read whole: it came back as it was written;
* read as other numbers: the change was covered by right checksums, so nobody can know;
* refused: one of the format's own errors, and nothing else;

and, as faults, a bare error, a silent change (other content behind checksums that were not made right again), code that
ran (a planted module was imported, a planted function called), more than a second of CPU or 300 MB beyond what the whole
file takes, and messages with raw control characters.

A format is one file: a class deriving from `Format`, and its line in `registry.FORMATS`.
"""

from paring.testing.fuzz.format import Case, Format, Seed
from paring.testing.fuzz.fuzzer import Counts, campaign, sown
from paring.testing.fuzz.registry import FORMATS, made

__all__ = ["FORMATS", "Case", "Counts", "Format", "Seed", "campaign", "made", "sown"]
