"""Exact removal: capture a network, find what is constant or unread, remove it without changing the function."""

from paring.graph.capture import CaptureError
from paring.graph.file import FileError, load, save
from paring.graph.plan import ShrinkPlan
from paring.graph.report import Report
from paring.graph.select import SelectLinear
from paring.graph.shrink import compact, shrink
from paring.graph.wiring import Layer, Norm, Wiring, wiring

__all__ = [
    "CaptureError",
    "FileError",
    "Layer",
    "Norm",
    "Report",
    "SelectLinear",
    "ShrinkPlan",
    "Wiring",
    "compact",
    "load",
    "save",
    "shrink",
    "wiring",
]
