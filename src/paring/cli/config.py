"""Configs as plain JSON, and the hash that names a run.

A config is a frozen dataclass of numbers, strings and other frozen dataclasses. Its JSON form writes every dataclass as
`{"type": NAME, field: value, ...}`; the hash of that text names the run's folder, so that the same run is never done
twice and a changed one never continues the wrong checkpoint. Fields at their default are left out of the hash: a new
option does not orphan the runs that were made before it existed. (So a default, once released, is never changed.) A field
that was renamed keeps its first name there (`paring.core.hashed_as`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from paring.core import Shorthand, first_name


def plain(value: Any, *, hashed: bool = False) -> Any:
    """The JSON form of a config value; for its hash without fields at their default, and with the names they had first.

    Raises:
        TypeError: something in it is no config value.
    """
    if isinstance(value, Shorthand):
        value = value.plain
    if is_dataclass(value) and not isinstance(value, type):
        shown = {
            first_name(f) if hashed else f.name: getattr(value, f.name)
            for f in fields(value)
            if not hashed or getattr(value, f.name) != _default(f)
        }
        return {"type": type(value).__name__} | {name: plain(item, hashed=hashed) for name, item in shown.items()}
    if isinstance(value, dict):
        return {str(key): plain(item, hashed=hashed) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item, hashed=hashed) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} cannot be part of a config: use numbers, strings, tuples and frozen dataclasses")


def digest(value: Any) -> str:
    """First 12 hex digits of the hash of the canonical form."""
    text = json.dumps(plain(value, hashed=True), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default
