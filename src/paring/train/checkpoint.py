"""Checkpoints: written atomically, the one before kept, damaged ones refused with what to do."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says why and what to do."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, keeping the previous checkpoint as `NAME.previous`. A kill at any moment leaves a whole one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"version": _VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, previous(path))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def previous(path: Path) -> Path:
    """Where the checkpoint before the newest lives."""
    return path.with_name(path.name + ".previous")


def load(path: Path) -> tuple[dict[str, Any], Path] | None:
    """The newest usable checkpoint and the file it came from; None when there is none at all.

    Raises:
        CheckpointError: there are files, but none of them can be read.
    """
    problems = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            return _read(candidate), candidate
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("; ".join(problems) + f". Delete {path.parent} to start this run anew.")
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): it is damaged or no checkpoint"
        ) from error
    if not isinstance(state, dict) or state.get("version") != _VERSION:
        raise CheckpointError(f"checkpoint {path} has another format than version {_VERSION}")
    return state
