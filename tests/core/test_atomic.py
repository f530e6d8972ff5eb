"""A file is there whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from paring.core.atomic import atomic, sweep

KILLED = f"""
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("atomic", {sweep.__code__.co_filename!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with module.atomic(sys.argv[1]) as file:
    file.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_takes_the_place_of_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def stop() -> None:
        with atomic(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "no" / "file"):
        pass


def test_what_a_killed_writer_left_goes_and_what_a_living_one_holds_stays(tmp_path: Path) -> None:
    path = tmp_path / "net[1].pare"
    for other in ("other", ".other.12345678.partial", ".net[1].pare.note", ".net1.pare.12345678.partial"):
        (tmp_path / other).write_text("stays")
    dead = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=os.environ, check=False)
    assert dead.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".net[[]1].pare.*.partial")
    with atomic(path) as held:
        assert not left.exists()
        held.write(b"whole")
        assert sweep(path) == []
        with atomic(path) as second:
            second.write(b"second")
        assert Path(held.name).exists()
    assert path.read_bytes() == b"whole"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".net1.pare.12345678.partial",
        ".net[1].pare.note",
        ".other.12345678.partial",
        "net[1].pare",
        "other",
    ]


def test_a_sweep_says_what_went(tmp_path: Path) -> None:
    left = tmp_path / ".file.00ff00ff.partial"
    left.write_text("half")
    assert sweep(tmp_path / "file") == [left]
    assert sweep(tmp_path / "no" / "file") == []
    left.mkdir()
    assert sweep(tmp_path / "file") == []


def test_a_sweep_between_making_and_locking_costs_the_writer_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    lock, swept = fcntl.flock, []

    def late(file: IO[bytes], how: int) -> None:
        if how == fcntl.LOCK_EX and not swept:
            swept.extend(sweep(tmp_path / "file"))
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with atomic(tmp_path / "file") as file:
        file.write(b"whole")
    assert len(swept) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
