"""Files that are there whole or not at all, and nothing of them left over where a writer was killed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where nobody can remove a file that its writer holds open
    fcntl = None  # type: ignore[assignment]

ENDING = ".partial"
_TOKEN = 8


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends without an error.

    Until then the old file stays as it is, so a crash, a kill or a full disk never leaves half a file under the name.
    The new file lies beside it under another name (`file.name`), where the block may read it back. What killed writers of
    the same file left there is swept up first.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    target = Path(path)
    sweep(target)
    file = _reserved(target)
    partial = Path(file.name)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name == "posix":  # under the lock, so that no sweep can come in between
                os.replace(partial, target)
        if os.name != "posix":  # an open file cannot be renamed there
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":  # the rename itself is on disk only once the folder is
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep(path: str | os.PathLike[str]) -> list[Path]:
    """Remove what killed writers of `path` left beside it; what a living writer holds stays. Returns what went.

    A writer holds a lock on its file as long as it lives, in whatever process or container; the system takes it from the
    dead. Where there are no locks (some network file systems), nothing is removed.
    """
    target = Path(path)
    try:
        names = os.listdir(target.parent)
    except OSError:
        return []
    return [target.parent / name for name in names if _is_partial(name, target.name) and _swept(target.parent / name)]


def _is_partial(name: str, target: str) -> bool:
    start = f".{target}."
    return name.startswith(start) and name.endswith(ENDING) and len(name) == len(start) + _TOKEN + len(ENDING)


def _swept(partial: Path) -> bool:
    """Remove this file, unless somebody holds it."""
    try:
        if not _is_file(partial):
            return False
        if fcntl is None:
            partial.unlink()
            return True
        with open(partial, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()
        return True
    except OSError:  # held, gone by now, or not ours
        return False


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _reserved(target: Path) -> BinaryIO:
    """A new file beside `target`, open for writing and locked."""
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target} cannot be written: there is no folder {target.parent}; make it first")
    while True:
        partial = target.with_name(f".{target.name}.{secrets.token_hex(_TOKEN // 2)}{ENDING}")
        file = open(partial, "xb")  # noqa: SIM115  (the caller closes it)
        if fcntl is None:
            return file
        with suppress(OSError):  # no locks here: then nobody sweeps either
            fcntl.flock(file, fcntl.LOCK_EX)
        if partial.exists():  # else a sweep came between the two lines above
            return file
        file.close()
