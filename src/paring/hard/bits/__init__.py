"""Networks of hard-threshold units and ±1 weights that compute with bits (extra `bits`)."""

from paring.hard.bits.pack import BitNet, pack_bits
from paring.hard.bits.report import BitsReport
from paring.hard.bits.trace import BitsError

__all__ = ["BitNet", "BitsError", "BitsReport", "pack_bits"]
