"""Checkpoints: written atomically, the one before kept; a damaged or foreign one is never used, and that is said."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paring.core import warn
from paring.core.atomic import atomic
from paring.core.state_file import CheckpointError, read, write

__all__ = ["CheckpointError", "load", "previous", "save"]


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, keeping the previous checkpoint as `NAME.previous`. A kill at any moment leaves a whole one.

    Raises:
        CheckpointError: something in it is no tensor, number, text, dict, list or tuple. Nothing was changed then.
    """
    with atomic(path) as file:
        write(file, state)
        file.flush()
        os.fsync(file.fileno())
        if path.exists():
            os.replace(path, previous(path))


def previous(path: Path) -> Path:
    """Where the checkpoint before the newest lives."""
    return path.with_name(path.name + ".previous")


def load(path: Path, check: Callable[[dict[str, Any]], None] | None = None) -> tuple[dict[str, Any], Path] | None:
    """The newest usable checkpoint and the file it came from; None when there is none at all.

    A `ParingWarning` says when that is not the newest one, and why.

    Args:
        path: of the newest.
        check: raises ValueError for what cannot be used here; changes nothing.

    Raises:
        CheckpointError: there are files, but none of them can be used.
    """
    problems = []
    for candidate in (path, previous(path)):
        if not os.path.lexists(candidate):
            continue
        try:
            state = read(candidate)
        except CheckpointError as error:
            problems.append(f"{candidate} cannot be read: {error}")
            continue
        try:
            if check is not None:
                check(state)
        except ValueError as error:
            problems.append(f"{candidate} does not fit: {error}")
            continue
        if problems:
            warn(f"{problems[0]}. {candidate.name}, the checkpoint before it, is taken instead")
        return state, candidate
    if problems:
        raise CheckpointError(
            f"{'; '.join(problems)}. To begin anew, name another folder; these files stay as they are"
        )
    return None
