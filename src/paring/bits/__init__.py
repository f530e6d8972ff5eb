"""Networks of hard-threshold units and ±1 weights that compute with bits (extra `bits`)."""

from paring.bits.bits_report import BitsReport
from paring.bits.convert import BitNet, pack_bits
from paring.bits.trace import BitsError

__all__ = ["BitNet", "BitsError", "BitsReport", "pack_bits"]
