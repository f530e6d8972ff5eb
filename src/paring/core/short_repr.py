"""A frozen value as text, without what is at its default: the same text for the same settings, also after an option was added."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from paring.core.places import Places


def concise(value: Any) -> str:
    """`IMP(rate=0.5)`, say, where `repr` would name every field; values inside alike."""
    if isinstance(value, Places):
        value = value.plain
    if isinstance(value, tuple):
        return f"({', '.join(map(concise, value))},)"
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    told = []
    for field in fields(value):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if (mine := getattr(value, field.name)) != default:
            told.append(f"{field.name}={concise(mine)}")
    return f"{type(value).__name__}({', '.join(told)})"
