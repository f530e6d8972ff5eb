"""Analysis: capture a network as a graph of tensor operations, and find which units are constant, unread or tied."""

from paring.analysis.capture import CaptureError
from paring.analysis.unit_groups import Group
from paring.analysis.wiring import Layer, Norm, Wiring, wiring

__all__ = ["CaptureError", "Group", "Layer", "Norm", "Wiring", "wiring"]
