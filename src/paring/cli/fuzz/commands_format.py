"""The commands that read network files, for `python -m paring.testing.fuzz commands`."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator
from pathlib import Path

from paring.cli.dispatch import BUG
from paring.cli.main import main
from paring.core.printable import printable_lines
from paring.testing.fuzz import Case, Format, Seed, network_format, pare_format

OUT = "out"


class Refused(ValueError):
    """A command ended with an exit status and a message."""


class Commands(Format):
    """`paring info`, `unpack` and `pack` over changed files: a message, or what they do with whole files."""

    name = "commands"
    errors = (Refused,)

    def __init__(self) -> None:
        self._pare, self._network = pare_format.Pare(), network_format.Network()

    def seeds(self) -> list[Seed]:
        packed = {seed.name: seed.files for seed in self._pare.seeds() if not seed.name.endswith("its tensors")}
        found = [Seed(f"info {name}", files, _info) for name, files in packed.items()]
        found += [Seed(f"unpack {name}", files, _unpack) for name, files in packed.items()]
        return found + [Seed(f"pack {seed.name}", seed.files, _pack) for seed in self._network.seeds()]

    def changed(self, seed: Seed, chance: random.Random) -> Case:
        return self._of(seed).changed(seed, chance)

    def planted(self, seed: Seed, every: int = 1) -> Iterator[Case]:
        return self._of(seed).planted(seed, every)

    def _of(self, seed: Seed) -> Format:
        return self._pare if pare_format.FILE in seed.files else self._network


def _said(*words: object) -> str:
    """What a command prints. Raises `Refused` with its message when it fails, `AssertionError` for raw characters."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*map(str, words), "--quiet"])
    assert printable_lines(out.getvalue()) == out.getvalue(), ascii(out.getvalue())[:500]
    assert BUG not in err.getvalue(), err.getvalue()
    if status:
        raise Refused(err.getvalue())
    return out.getvalue()


def _info(folder: Path) -> object:
    return _said("info", folder / pare_format.FILE, "--max-bytes", pare_format.LARGEST)


def _unpack(folder: Path) -> object:
    _said("unpack", folder / pare_format.FILE, "--out", folder / OUT, "--max-bytes", pare_format.LARGEST)
    table, manifest, body = network_format.taken_apart((folder / OUT).read_bytes())
    return table, manifest, body


def _pack(folder: Path) -> object:
    _said("pack", folder / network_format.FILE, "--out", folder / OUT)
    return (folder / OUT).read_bytes()
