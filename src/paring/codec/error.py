"""The one error of the `.pare` format."""

from __future__ import annotations


class PareError(ValueError):
    """A `.pare` file cannot be read or written; the message says what is wrong and what to do."""
