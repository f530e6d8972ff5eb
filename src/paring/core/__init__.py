"""Clock, gates, gated layers and the method contract: everything the rest of paring is built on."""

from paring.core.clock import Clock
from paring.core.gate import Gate
from paring.core.layers import GATED, KINDS, STOCK, Gated, Kind, gate_shape, gated_layers, gates, put, release, strip
from paring.core.method import Attachment, Method, Probe, Stack, attached, is_attached, set_attachment

__all__ = [
    "GATED",
    "KINDS",
    "STOCK",
    "Attachment",
    "Clock",
    "Gate",
    "Gated",
    "Kind",
    "Method",
    "Probe",
    "Stack",
    "attached",
    "gate_shape",
    "gated_layers",
    "gates",
    "is_attached",
    "put",
    "release",
    "set_attachment",
    "strip",
]
