"""``import paring`` and ``paring --help`` are quick: next to torch itself it brings numpy, safetensors and our own files, nothing heavier."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
import torch
before = set(sys.modules)
import {module}
print(*sorted({{name.partition('.')[0] for name in set(sys.modules) - before}} - {{'torch'}}))
print(*sorted(name for name in set(sys.modules) - before if name.startswith('torch.')))
"""
_OURS = {"paring", "numpy", "safetensors"}


def _brought(module: str) -> tuple[set[str], list[str]]:
    """What importing ``module`` adds to ``import torch``: packages outside the standard library, and torch's modules."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(module=module)], capture_output=True, text=True, check=True
    )
    packages, torchs = done.stdout.split("\n")[:2]
    return {name for name in packages.split() if name not in sys.stdlib_module_names}, torchs.split()


def test_importing_paring_brings_nothing_heavy() -> None:
    packages, torchs = _brought("paring.cli.main")  # the command line too, as far as `paring --help` goes
    assert "paring" in packages
    assert packages <= _OURS  # no sympy (a second by itself), onnx, numba, scipy, sklearn, matplotlib, ray, tyro
    heavy = ("torch._dynamo", "torch._inductor", "torch.onnx", "torch.fx.experimental", "torch.testing")
    assert [name for name in torchs if name.startswith(heavy)] == []
