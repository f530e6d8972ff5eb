"""What a mistyped name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def meant(word: str, known: Iterable[str]) -> str:
    """A question that names the one or two nearest names, with a space behind it; nothing when none is near.

    Args:
        word: as typed.
        known: the names that there are.
    """
    plain = {name.lower().replace("-", "_"): name for name in known}
    near = difflib.get_close_matches(word.lower().replace("-", "_"), plain, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(repr(plain[name]) for name in near)}? " if near else ""
