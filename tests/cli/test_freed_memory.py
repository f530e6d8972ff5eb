"""Freed memory is kept, not got from the system page by page in every step; and what a run held is freed when it ends."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from marks import CUT_SHORT
from paring.cli import freed_memory
from paring.cli.experiment import Experiment
from paring.data import Dataset
from paring.methods import L0, Budget
from paring.train import Recipe

pytestmark = CUT_SHORT

SCRIPT = f"""
import importlib.util, resource, sys
import numpy as np
spec = importlib.util.spec_from_file_location("freed_memory", {freed_memory.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
keep_freed_memory = module.keep_freed_memory
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


def test_the_data_go_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    read = Experiment.dataset

    def watched(self: Experiment) -> Dataset:
        data = read(self)
        held.append(weakref.ref(data.train.x))
        return data

    monkeypatch.setattr(Experiment, "dataset", watched)
    gc.disable()
    try:
        gated = L0(price=Budget(params=0.2), at="units")
        Experiment("lenet_300_100", "digits", gated, Recipe(epochs=1, batch=100)).run(tmp_path, progress=False)
        assert held[0]() is None
    finally:
        gc.enable()
