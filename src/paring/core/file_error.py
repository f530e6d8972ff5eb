"""The one error of files of networks."""

from __future__ import annotations

from paring.core.printable import printable


class FileError(ValueError):
    """A file cannot be written or read as the network asked for; the message says what, why and what to do.

    What the file says is in the message escaped, on one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
