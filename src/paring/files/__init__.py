"""Files of networks: safetensors with a manifest, ONNX, and the entropy-coded `.pare` format (FORMAT.md)."""

from paring.files.file import load, save
from paring.files.int8 import Int8, Int8Report
from paring.files.onnx import OnnxError, to_onnx
from paring.files.pack import pack, unpack
from paring.files.pare.container import Entry, File, write
from paring.files.pare.error import PareError
from paring.files.shards import Shards

__all__ = [
    "Entry",
    "File",
    "Int8",
    "Int8Report",
    "OnnxError",
    "PareError",
    "Shards",
    "load",
    "pack",
    "save",
    "to_onnx",
    "unpack",
    "write",
]
