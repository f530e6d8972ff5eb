"""Compression down to the last byte: entropy coding and the `.pare` file (FORMAT.md)."""

from paring.codec.container import Entry, File, write
from paring.codec.error import PareError

__all__ = ["Entry", "File", "PareError", "write"]
