"""A process that keeps its freed memory does not get it from the system page by page in every step."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from paring.lab.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory() and keep_freed_memory()
def step():
    for array in [np.empty(1 << 22, dtype=np.uint8) for _ in range(6)]:
        array[::4096] = 1
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_pages_are_faulted_in_once() -> None:
    faults = {
        word: int(
            subprocess.run([sys.executable, "-c", SCRIPT, word], capture_output=True, text=True, check=True).stdout
        )
        for word in ("keep", "leave")
    }
    assert faults["leave"] > 10_000
    assert faults["keep"] < 0.05 * faults["leave"]
