"""Compression down to the last byte: entropy coding and the `.pare` file (FORMAT.md)."""

from paring.codec.compressors import (
    Compressed,
    Compressor,
    NeedsTraining,
    Step,
    Training,
    compress,
)
from paring.codec.container import Entry, File, write
from paring.codec.error import PareError
from paring.codec.objective import Objective
from paring.codec.pack import pack, unpack
from paring.codec.shards import Shards

__all__ = [
    "Compressed",
    "Compressor",
    "Entry",
    "File",
    "NeedsTraining",
    "Objective",
    "PareError",
    "Shards",
    "Step",
    "Training",
    "compress",
    "pack",
    "unpack",
    "write",
]
