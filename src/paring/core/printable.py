"""Text from a file as it may be shown: terminals obey control characters, and lone surrogates cannot be printed at all."""

from __future__ import annotations


def printable(text: object, longest: int = 2000) -> str:
    r"""The text on one line: what is no printable character is escaped as Python writes it, and what is too long is cut.

    Line ends, terminal escapes, marks that turn the direction of writing and lone surrogates become `\n`, `\x1b`, `\u202e`,
    `\udc80`. longest: characters that are shown at most.
    """
    whole = str(text)
    if not whole.isprintable():
        whole = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in whole)
    return whole if len(whole) <= longest else f"{whole[: longest - 1]}…"


def printable_lines(text: object) -> str:
    """The same for text of several lines, which stay lines."""
    return "\n".join(map(printable, str(text).split("\n")))
