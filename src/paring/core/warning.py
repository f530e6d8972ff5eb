"""What was asked for and not done is said: one category of warning for the whole package."""

from __future__ import annotations

import warnings


class ParingWarning(UserWarning):
    """Something that was asked for was not done, or not as asked. The message says what, why and what to do."""


def warn(message: str) -> None:
    """Warn with `ParingWarning`, from the line of paring that calls this."""
    warnings.warn(message, ParingWarning, stacklevel=2)
