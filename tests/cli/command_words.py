"""The command line as a function, and its messages without boxes."""

from __future__ import annotations

import re

from paring.cli.main import main


def paring(*words: str) -> int:
    """Exit status of the command."""
    try:
        return main(words)
    except SystemExit as stop:
        return int(str(stop.code))


def flat(text: str) -> str:
    """Text without boxes and line breaks."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)
