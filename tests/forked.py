"""Scripts of tests in processes of their own, which start at once: copies of one that has imported torch and paring.

A fresh interpreter takes four seconds for that. The process that is copied has done nothing but `tests.warm`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import textwrap
from collections.abc import Mapping
from functools import cache
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]


@cache
def context() -> Any:
    """Where processes come from; on other systems than Linux each is a fresh one."""
    found: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
        found.set_forkserver_preload(["tests.warm"])
        forkserver.ensure_running()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return found


class Child:
    """A script that runs in a process of its own.

    Args:
        script: a file, or the text of one.
        folder: where its text and what it prints are kept.
        words: its arguments, `sys.argv[1:]`.
        environment: variables it has besides ours.
    """

    def __init__(
        self, script: Path | str, folder: Path, *words: str, environment: Mapping[str, str] | None = None
    ) -> None:
        number = len(list(folder.glob("child*.txt")))
        if isinstance(script, str):
            text, script = script, folder / f"child{number}.py"
            script.write_text(textwrap.dedent(text))
        self._output = folder / f"child{number}.txt"
        self._output.touch()
        given = (str(script), list(words), str(self._output), dict(environment or {}))
        self._process: BaseProcess = context().Process(target=_play, args=given)
        self._process.start()

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process.pid is not None
        return self._process.pid

    def wait(self, timeout: float = 600) -> int | None:
        """Its exit status, negative when a signal ended it; None when it still runs after so many seconds."""
        self._process.join(timeout)
        return self._process.exitcode

    def said(self) -> str:
        """What it has printed so far, errors among it."""
        return self._output.read_text()

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.join()
        self._process.close()


def run(script: Path | str, folder: Path, *words: str, timeout: float = 600) -> tuple[int | None, str]:
    """Run a script to its end: its exit status, as `Child.wait` gives it, and what it printed."""
    child = Child(script, folder, *words)
    try:
        return child.wait(timeout), child.said()
    finally:
        child.kill()


def _play(script: str, words: list[str], output: str, environment: dict[str, str]) -> None:
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")
