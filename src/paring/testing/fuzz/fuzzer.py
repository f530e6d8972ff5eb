"""Many changed files, read one after the other; everything that happens is counted."""

from __future__ import annotations

import itertools
import random
import re
import shutil
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from paring.testing.fuzz import plant
from paring.testing.fuzz.fingerprint import fingerprint
from paring.testing.fuzz.format import Case, Files, Format, Seed
from paring.testing.fuzz.limits import Hangs, bounded, measured

SECONDS, BYTES, ADDRESSES = 1.0, 300 << 20, 4 << 30
GOOD = ("read whole", "read as other numbers", "refused")
FAULTS = ("bare error", "silent change", "code run", "over time", "over memory", "raw characters")


@dataclass
class Counts:
    """What happened.

    Attributes:
        format: its name.
        cases: how many files were read.
        outcomes: how often each of `GOOD` and `FAULTS`.
        seconds: that it took.
        slowest, largest: most CPU seconds and bytes of one reading.
        failing: for each fault, what it was and the line that shows it again.
    """

    format: str
    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: float = 0.0
    largest: int = 0
    failing: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """How many there were."""
        return sum(self.outcomes[name] for name in FAULTS)

    def __str__(self) -> str:
        shown = ", ".join(f"{self.outcomes[name]:,} {name}" for name in (*GOOD, *FAULTS))
        return (
            f"{self.format}: {self.cases:,} cases in {self.seconds:.0f} s ({shown}); at most {self.slowest:.2f} s of CPU and "
            f"{self.largest / 1e6:.0f} MB for one"
        )


def campaign(
    format: Format,
    *,
    seconds: float | None = None,
    cases: int | None = None,
    seed: int = 0,
    start: int = 0,
    keep: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Counts:
    """Change and read files until `seconds` are over or `cases` are done.

    Args:
        format: what to read.
        seconds: how long; None goes by `cases` alone.
        cases: how many; None goes by `seconds` alone.
        seed: case number `n` of a seed is always the same.
        start: number of the first case.
        keep: folder for the files that showed faults; None keeps none.
        say: told about every fault.

    Raises:
        ValueError: neither `seconds` nor `cases`.
        RuntimeError: a whole file cannot be read, or runs planted code.
    """
    if seconds is None and cases is None:
        raise ValueError("a campaign needs seconds or cases")

    def drawn(whole: list[_Whole]) -> Iterator[tuple[str, _Whole, Case]]:
        begun = time.monotonic()
        for number in range(start, start + cases) if cases is not None else itertools.count(start):
            if seconds is not None and time.monotonic() - begun > seconds:
                return
            chance = random.Random(f"{seed}/{number}")
            (known,) = chance.choices(whole, [one.seed.weight for one in whole])
            yield f"--seed {seed} --start {number} --cases 1", known, format.changed(known.seed, chance)

    return _counted(format, drawn, keep, say)


def sown(
    format: Format, *, every: int = 1, keep: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> Counts:
    """Plant code in every field of every seed of a format, and read each; see `campaign`.

    every: plant only one time of so many, see `mutate.everywhere`.
    """

    def planted(whole: list[_Whole]) -> Iterator[tuple[str, _Whole, Case]]:
        for known in whole:
            for case in format.planted(known.seed, every):
                yield "--sow", known, case

    return _counted(format, planted, keep, say)


def _counted(
    format: Format,
    given: Callable[[list[_Whole]], Iterator[tuple[str, _Whole, Case]]],
    keep: Path | None,
    say: Callable[[str], None],
) -> Counts:
    """Read cases, each with the options that make it again, and count."""
    counts = Counts(format.name)
    with (
        tempfile.TemporaryDirectory(prefix="paring-fuzz-") as place,
        plant.planted(),
        warnings.catch_warnings(),
        bounded(ADDRESSES),
    ):
        warnings.simplefilter("ignore")
        folder = Path(place) / "case"
        whole = [_Whole.of(one, folder) for one in format.seeds()]
        begun = time.monotonic()
        for again, known, case in given(whole):
            found = _outcomes(format, known, case, folder, counts)
            counts.cases += 1
            counts.outcomes.update(list(found))
            for name, why in found.items():
                if name in FAULTS:
                    line = f"python -m paring.testing.fuzz {format.name} {again}"
                    counts.failing.append(f"{name} ({known.seed.name}): {why.strip()}\n  {line}")
                    say(counts.failing[-1])
                    if keep is not None:
                        numbers = re.findall(r"\d+", again)[:2] or [str(counts.cases)]
                        _laid(case.files, keep / "-".join([format.name, *numbers]))
        counts.seconds = time.monotonic() - begun
    return counts


@dataclass(frozen=True)
class _Whole:
    """A seed, what it holds, and what reading it takes."""

    seed: Seed
    mark: str
    seconds: float
    memory: int

    @classmethod
    def of(cls, seed: Seed, folder: Path) -> _Whole:
        plant.happened()
        for _ in range(2):  # the first reading imports and warms up
            _laid(seed.files, folder)
            with measured() as taken:
                mark = fingerprint(seed.read(folder))
        if ran := plant.happened():
            raise RuntimeError(f"the whole file {seed.name} has planted code {ran}")
        return cls(seed, mark, taken.seconds, taken.memory)


def _outcomes(format: Format, known: _Whole, case: Case, folder: Path, counts: Counts) -> dict[str, str]:
    """The outcomes of one case, each with why."""
    _laid(case.files, folder)
    found: dict[str, str] = {}
    with measured() as taken:
        try:
            mark = fingerprint(known.seed.read(folder))
            if mark == known.mark:
                found["read whole"] = ""
            elif case.forged:
                found["read as other numbers"] = ""
            else:
                found["silent change"] = "other content, and the checksums were not made right again"
        except format.errors as error:
            found["refused"] = str(error)
            if not all(c.isprintable() or c == "\n" for c in str(error)):
                found["raw characters"] = ascii(str(error))[:300]
            if _too_large(error):
                found["over memory"] = repr(error.__cause__ or error)[:300]
        except Hangs:
            found["over time"] = "did not end"
        except Exception as error:
            name = "over memory" if _too_large(error) else "bare error"
            found[name] = "".join(traceback.format_exception(error)[-3:])[-1500:]
    if ran := plant.happened():
        found["code run"] = f"planted code was {', '.join(ran)}"
    if taken.seconds > known.seconds + SECONDS:
        found["over time"] = f"{taken.seconds:.1f} s of CPU, the whole file {known.seconds:.1f} s"
    size = sum(map(len, case.files.values()))
    if taken.memory > known.memory + size + BYTES:
        found["over memory"] = f"{taken.memory / 1e6:.0f} MB for {size:,} bytes"
    counts.slowest, counts.largest = max(counts.slowest, taken.seconds), max(counts.largest, taken.memory)
    return found


def _too_large(error: BaseException | None) -> bool:
    """Whether memory was asked for that there is not."""
    while error is not None:
        if isinstance(error, MemoryError) or "tried to allocate" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _laid(files: Files, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        path = folder / name
        if "/" in name:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
