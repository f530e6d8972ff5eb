"""The one error of the `.pare` format."""

from __future__ import annotations

from paring.core.printable import printable


class PareError(ValueError):
    """A `.pare` file cannot be read or written; the message says what is wrong and what to do.

    What the file says is in the message escaped, on one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
