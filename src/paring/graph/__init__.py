"""Exact removal: capture a network, find what is constant or unread, remove it without changing the function."""

from paring.graph.capture import CaptureError
from paring.graph.wiring import Layer, Norm, Wiring, wiring

__all__ = ["CaptureError", "Layer", "Norm", "Wiring", "wiring"]
