"""`attach` and the `Run` it returns."""

from paring.handle.attach import NetworkProbe, Run, attach

__all__ = ["NetworkProbe", "Run", "attach"]
