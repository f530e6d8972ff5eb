"""A field of a config that was given another name: its old one stays in hashes, so that runs made before are found."""

from __future__ import annotations

from dataclasses import Field
from typing import Any

_KEY = "hashed_as"


def hashed_as(name: str) -> dict[str, str]:
    """Metadata of a field that had this name at first: `field(default=0, metadata=hashed_as("to"))`."""
    return {_KEY: name}


def first_name(field: Field[Any]) -> str:
    """The name that a field has in hashes."""
    return str(field.metadata.get(_KEY, field.name))
