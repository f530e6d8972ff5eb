"""``import paring`` and ``paring --help`` are quick: next to torch itself it brings numpy, safetensors and our own files, nothing heavier."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import paring
from paring import methods

_PROGRAM = """
import sys
import torch
before = set(sys.modules)
from {module} import *
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
    for module in ("paring", "paring.cli.commands"):
        _nothing_heavy(module)


def _nothing_heavy(module: str) -> None:
    packages, torchs = _brought(module)
    assert "paring" in packages
    assert packages <= _OURS  # no sympy (a second by itself), onnx, numba, scipy, sklearn, matplotlib, ray, tyro
    heavy = ("torch._dynamo", "torch._inductor", "torch.onnx", "torch.fx.experimental", "torch.testing")
    assert [name for name in torchs if name.startswith(heavy)] == []


@pytest.mark.parametrize("word", ["--help", "--version", "trian"])
def test_the_overview_needs_no_torch(word: str) -> None:
    program = f"""
import sys
from paring.cli.main import main
main([{word!r}])
print(sorted({{"torch", "numpy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "paring" in done.stdout + done.stderr


def test_every_public_name_is_there_and_listed() -> None:
    assert set(methods.__all__) <= set(paring.__all__) <= set(dir(paring))
    assert len(paring.__all__) == len(set(paring.__all__))
    for name in paring.__all__:
        assert getattr(paring, name) is not None
    rooms = {path.parent.name for path in Path(paring.__file__).parent.glob("*/__init__.py")}
    assert rooms <= set(dir(paring))
    for name in rooms:
        assert getattr(paring, name).__name__ == f"paring.{name}"
    with pytest.raises(AttributeError, match="module 'paring' has no attribute 'atach'"):
        paring.atach  # noqa: B018
