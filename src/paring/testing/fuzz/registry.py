"""The formats by name: where each one's class is, so that only those asked for are imported."""

from __future__ import annotations

import importlib

from paring.testing.fuzz.format import Format

FORMATS: dict[str, str] = {
    "safetensors": "paring.testing.fuzz.network_format:Network",
    "pare": "paring.testing.fuzz.pare_format:Pare",
    "commands": "paring.cli.fuzz.commands_format:Commands",
    "checkpoint": "paring.testing.fuzz.checkpoint_format:Checkpoint",
    "result": "paring.cli.fuzz.result_format:Result",
    "run": "paring.cli.fuzz.run_format:RunFolder",
    "sweep": "paring.cli.fuzz.sweep_format:Sweep",
}
"""Name -> "module:class"."""


def made(name: str) -> Format:
    """The format of this name."""
    module, _, kind = FORMATS[name].partition(":")
    found: Format = getattr(importlib.import_module(module), kind)()
    return found
