"""A frozen value as text, without what is at its default: the same text for the same settings, also after an option was added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import MISSING, fields, is_dataclass
from types import FunctionType
from typing import Any


class Shorthand(ABC):
    """A frozen value with a shorter form in configs, labels and saved states, such as the text of a place."""

    @property
    @abstractmethod
    def plain(self) -> Any:
        """The shorter form, or the value itself where it has none."""


def short_repr(value: Any) -> str:
    """`IMP(rate=0.5)`, say, where `repr` would name every field; values inside alike."""
    if isinstance(value, Shorthand):
        value = value.plain
    if isinstance(value, tuple):
        return f"({', '.join(map(short_repr, value))},)"
    if isinstance(value, FunctionType):
        return f"{value.__module__}.{value.__qualname__}"  # its repr holds an address
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    told = []
    for field in fields(value):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if (mine := getattr(value, field.name)) != default:
            told.append(f"{field.name}={short_repr(mine)}")
    return f"{type(value).__name__}({', '.join(told)})"
