"""Methods, one file each. To add one: its file, one line here, one row in `paring.testing.zoo`."""

from paring.core import Method as Dense
from paring.methods.budget import Budget
from paring.methods.l0 import L0
from paring.methods.price import Price
from paring.methods.shrink import Shrink

__all__ = ["L0", "Budget", "Dense", "Price", "Shrink"]
