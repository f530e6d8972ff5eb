"""Run a script in several processes that form one gloo group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import paring

_ROOT = Path(__file__).resolve().parents[2]


def together(script: Path | str, folder: Path, *flags: str, processes: int = 2, timeout: float = 600) -> list[str]:
    """Run `script RANK MEETING` in every process and return what each printed; all have to end well.

    Args:
        script: a file, or the text of one.
        folder: an empty folder of one's own.
        flags: of the interpreter.
        processes: how many.
        timeout: seconds.
    """
    if isinstance(script, str):
        text, script = script, folder / "child.py"
        script.write_text(text)
    source = Path(paring.__file__).resolve().parents[1]
    environment = {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([str(source), str(_ROOT)]),
    }
    children = [
        subprocess.Popen(
            [sys.executable, *flags, str(script), str(rank), str(folder / "meeting")],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        said = [child.communicate(timeout=timeout)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * processes, "\n".join(said)
    return said
