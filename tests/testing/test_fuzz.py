"""The fuzzer sees every fault that it looks for, and the same case again by its number."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paring.testing.fuzz import FORMATS, Case, Format, Seed, campaign, limits, made, plant
from paring.testing.fuzz.__main__ import main
from paring.testing.fuzz.mutate import as_text, changed, damaged
from paring.testing.fuzz.plant import NAME


class Refusal(ValueError):
    pass


class One(Format):
    """A format of one byte; what happens to other bytes is up to the test."""

    name, errors = "one", (Refusal,)

    def __init__(self, then: Callable[[bytes], object], forged: bool = False) -> None:
        self.then, self.forged = then, forged

    def seeds(self) -> list[Seed]:
        return [Seed("whole", {"file": b"a"}, self.read)]

    def changed(self, seed: Seed, chance: random.Random) -> Case:
        return Case({"file": bytes([98 + chance.randrange(20)])}, self.forged)

    def read(self, folder: Path) -> object:
        data = (folder / "file").read_bytes()
        return 0 if data == b"a" else self.then(data)


def refuse(message: str) -> object:
    raise Refusal(message)


def spend(seconds: float) -> None:
    began = limits.time.process_time()
    while limits.time.process_time() - began < seconds:
        pass


@pytest.mark.parametrize(
    ("outcome", "then"),
    [
        ("read whole", lambda data: 0),
        ("silent change", lambda data: data),
        ("refused", lambda data: refuse("no")),
        ("raw characters", lambda data: refuse("\x1b[31m")),
        ("raw characters", lambda data: refuse("\udc80")),
        ("bare error", lambda data: {}["key"]),
        ("code run", lambda data: importlib.import_module(NAME)),
        ("code run", lambda data: importlib.import_module(NAME).planted() and refuse("too late")),
        ("over memory", lambda data: np.empty(1 << 40)),
    ],
)
def test_every_fault_is_counted(outcome: str, then: Callable[[bytes], object]) -> None:
    counts = campaign(One(then), cases=2)
    assert counts.outcomes[outcome] == counts.cases == 2
    assert counts.faults == sum(counts.outcomes.values()) - sum(counts.outcomes[g] for g in ("read whole", "refused"))
    assert (f"2 {outcome}") in str(counts)


def test_memory_that_is_really_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paring.testing.fuzz.fuzzer.BYTES", 30 << 20)
    for size, outcome in ((1, 0), (150, 1)):
        counts = campaign(One(lambda data, size=size: np.ones(size << 20, np.uint8)[:0].sum() * 0), cases=1)
        assert counts.outcomes["over memory"] == outcome


def test_time_and_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paring.testing.fuzz.fuzzer.SECONDS", 0.02)
    assert campaign(One(lambda data: spend(0.05)), cases=1).outcomes["over time"] == 1
    monkeypatch.setattr(limits, "HANGS", 0.05)
    assert campaign(One(lambda data: limits.time.sleep(20)), cases=1).outcomes["over time"] == 1


def test_other_numbers_behind_right_checksums_are_no_fault() -> None:
    counts = campaign(One(lambda data: data, forged=True), cases=3)
    assert (counts.outcomes["read as other numbers"], counts.faults) == (3, 0)


def test_a_fault_is_kept_and_comes_again_by_its_number(tmp_path: Path) -> None:
    def then(data: bytes) -> object:
        assert data != b"c"
        return 0

    counts = campaign(One(then), cases=100, seed=3, keep=tmp_path)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == counts.faults > 0
    assert (kept[0] / "file").read_bytes() == b"c"
    number = int(kept[0].name.split("-")[-1])
    assert f"fuzz one --seed 3 --start {number} --cases 1" in "\n".join(counts.failing)
    assert campaign(One(then), cases=1, seed=3, start=number).faults == 1
    with pytest.raises(ValueError, match="seconds or cases"):
        campaign(One(then))


def test_changes_are_others_and_leave_the_original() -> None:
    chance, value, planted = random.Random(0), {"a": [1, {"b": "c"}], "d": None}, json.dumps(plant.VALUES)
    texts = {as_text(changed(value, chance), chance) for _ in range(3000)}
    assert value == {"a": [1, {"b": "c"}], "d": None}
    assert json.dumps(plant.VALUES) == planted
    assert len(texts) > 150
    assert any(NAME in text for text in texts)
    assert any("[" * 1000 in text for text in texts)
    data = bytes(range(50))
    assert len({damaged(data, chance) for _ in range(200)}) > 180
    assert damaged(b"", chance) is not None


def test_formats_are_there_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for name in FORMATS:
        assert made(name).name == name
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(word in out for word in (*FORMATS, "all", "--seconds", "--start"))
