"""Exact removal: capture a network, find what is constant or unread, remove it without changing the function."""

from paring.graph.capture import CaptureError
from paring.graph.file import load, save
from paring.graph.file_error import FileError
from paring.graph.graph_form import GraphFormError
from paring.graph.graph_net import GraphNet
from paring.graph.groups import Group
from paring.graph.onnx import OnnxError, to_onnx
from paring.graph.plan import ShrinkPlan
from paring.graph.report import Report
from paring.graph.select import SelectLinear
from paring.graph.shrink import compact, shrink
from paring.graph.wiring import Layer, Norm, Wiring, wiring

__all__ = [
    "CaptureError",
    "FileError",
    "GraphFormError",
    "GraphNet",
    "Group",
    "Layer",
    "Norm",
    "OnnxError",
    "Report",
    "SelectLinear",
    "ShrinkPlan",
    "Wiring",
    "compact",
    "load",
    "save",
    "shrink",
    "to_onnx",
    "wiring",
]
