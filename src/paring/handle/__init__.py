"""`attach` and the `Run` it returns."""

from paring.handle.attach import attach
from paring.handle.probe import NetworkProbe
from paring.handle.run import Run

__all__ = ["NetworkProbe", "Run", "attach"]
