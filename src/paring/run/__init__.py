"""`attach` and the `Run` it returns: a method driven from any training loop."""

from paring.run.attach import attach
from paring.run.probe import NetworkProbe
from paring.run.run import Run

__all__ = ["NetworkProbe", "Run", "attach"]
