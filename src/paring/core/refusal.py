"""Why something is not done, as a value: what a function returns in place of its result, or in place of None."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """Something that cannot be, or must not be done. Its text is the reason.

    Attributes:
        reason: for the user's eyes: what, and why.
    """

    reason: str

    def __str__(self) -> str:
        return self.reason
