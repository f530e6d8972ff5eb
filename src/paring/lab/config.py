"""Configs as plain JSON, and the hash that names a run.

A config is a frozen dataclass of numbers, strings and other frozen dataclasses. Its canonical form writes every
dataclass as `{"type": NAME, field: value, ...}`; the hash of that text names the run's folder, so that the same run is
never done twice and a changed one never continues the wrong checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass
from typing import Any


def plain(value: Any) -> Any:
    """The JSON form of a config value.

    Raises:
        TypeError: something in it is no config value.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.init or f.name == "methods"}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} cannot be part of a config: use numbers, strings, tuples and frozen dataclasses")


def digest(value: Any) -> str:
    """First 12 hex digits of the hash of the canonical form."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
