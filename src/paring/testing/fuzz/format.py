"""What a format tells the fuzzer: whole files, how they are changed, and how they are read."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Seed:
    """Whole files and how they are read.

    Attributes:
        name: for people.
        files: path inside a folder -> bytes.
        read: given the folder, reads the files as users do and returns what they hold: tensors, modules, plain values, or
            tuples, lists and dictionaries of them, which `fingerprint` compares bit by bit.
        weight: how often it is drawn; small for what is slow to read.
    """

    name: str
    files: Files
    read: Callable[[Path], object]
    weight: float = 1.0


@dataclass(frozen=True)
class Case:
    """Changed files.

    Attributes:
        files: path inside a folder -> bytes.
        forged: checksums were made right again (or there are none), so that other content is no silent change.
    """

    files: Files
    forged: bool


class Format(ABC):
    """A kind of file.

    Attributes:
        name: as on the command line.
        errors: what reading may raise; anything else is a fault.
    """

    name: str
    errors: tuple[type[Exception], ...]

    @abstractmethod
    def seeds(self) -> list[Seed]:
        """Small whole files of every sort."""

    @abstractmethod
    def changed(self, seed: Seed, chance: random.Random) -> Case:
        """The files of a seed with something else in them; the same for the same state of `chance`."""

    def planted(self, seed: Seed, every: int = 1) -> Iterator[Case]:
        """The files of a seed with planted code in one field after the other, forged; see `mutate.everywhere` for `every`."""
        yield from ()
