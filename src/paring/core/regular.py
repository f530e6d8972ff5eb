"""Files are opened, pipes are not waited for."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A file, open for reading bytes.

    Raises:
        OSError: there is none, or it is a folder, a pipe or a device, which might never end; `strerror` says which.
    """
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a NUL in the path
        raise OSError(0, str(error)) from error
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(0, "it is a folder, a pipe or a device, and no file")
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise
