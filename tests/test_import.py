"""``import paring`` and ``paring --help`` are quick: next to torch itself it brings numpy, safetensors and our own files, nothing heavier."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import paring
from paring import methods

_PROGRAM = """
import sys
import tomllib
import torch
before = set(sys.modules)
from paring import *
from paring.cli.commands import *
print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before} - {'torch'}))
print(*sorted(name for name in set(sys.modules) - before if name.startswith('torch.')))
"""
_OURS = {"paring", "numpy", "safetensors"}


def test_importing_paring_brings_nothing_heavy() -> None:
    """Nor does the command line: what both add to ``import torch`` is packages of ours, and light modules of torch."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    found, torchs = (set(line.split()) for line in done.stdout.split("\n")[:2])
    packages = found - sys.stdlib_module_names
    assert "paring" in packages
    assert packages <= _OURS  # no sympy (a second by itself), onnx, numba, scipy, sklearn, matplotlib, ray, tyro
    heavy = ("torch._dynamo", "torch._inductor", "torch.onnx", "torch.fx.experimental", "torch.testing")
    assert [name for name in torchs if name.startswith(heavy)] == []


@pytest.mark.parametrize("word", ["--help", "--version", "trian"])
def test_the_overview_needs_no_torch(word: str) -> None:
    program = f"""
import sys
import tomllib
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


def test_the_demo_needs_what_its_extra_installs() -> None:
    root = Path(__file__).resolve().parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert extras["demo"] == ["paring[cli,data,report]"]
    assert "$(INSTALL) '.[demo]'" in (root / "Makefile").read_text(encoding="utf-8")
    named = {re.split(r"[><=\[]", one)[0] for key in ("sweep", "bits", "codec", "onnx", "dev") for one in extras[key]}
    absent = sorted({name.replace("-", "_") for name in named} - {"torch", "scipy", "paring"})
    program = f"""
import sys
import tomllib
for name in {absent!r}:
    sys.modules[name] = None
from paring.cli import demo, index_page, page
from paring.data import load
net = demo.build_small(0, load("digits"))
rows = [dict(epoch=1, loss=1.0, error=2.0), dict(epoch=2, loss=0.5, error=1.0)]
assert "<svg" in page.run_page("demo", dict(model="m"), rows, [])
print(sum(p.numel() for p in net.parameters()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "50610"
