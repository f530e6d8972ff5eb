"""The formats by name: where each one's class is, so that only those asked for are imported."""

from __future__ import annotations

import importlib

from paring.testing.fuzz.format import Format

FORMATS: dict[str, str] = {
    "safetensors": "paring.testing.fuzz.network:Network",
    "pare": "paring.testing.fuzz.pare:Pare",
    "commands": "paring.lab.fuzz.commands:Commands",
    "checkpoint": "paring.testing.fuzz.checkpoint:Checkpoint",
    "result": "paring.lab.fuzz.result:Result",
    "run": "paring.lab.fuzz.run:RunFolder",
    "sweep": "paring.lab.fuzz.sweep:Sweep",
}
"""Name -> "module:class"."""


def made(name: str) -> Format:
    """The format of this name."""
    module, _, kind = FORMATS[name].partition(":")
    found: Format = getattr(importlib.import_module(module), kind)()
    return found
