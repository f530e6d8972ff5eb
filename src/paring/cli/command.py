"""What a subcommand is, and the refusal of a command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


class CommandError(ValueError):
    """The command line asks for something that cannot be."""


@dataclass(frozen=True)
class Command:
    """One subcommand: a line for the overview, what runs it, and what is said when it was interrupted."""

    about: str
    run: Callable[[Sequence[str]], int]
    resumes: str = "run it again"


def set_threads(count: int) -> None:
    """Use so many CPU threads; 0 leaves the number alone."""
    import torch

    if count < 0:
        raise CommandError(f"--threads {count}: must be 0 (all) or a positive number")
    if count:
        torch.set_num_threads(count)
