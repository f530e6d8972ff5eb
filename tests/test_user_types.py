"""Users who run `mypy --strict` get no complaint about what the docs show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_what_the_docs_show_is_typed() -> None:
    """One run, with the cache of `make check`; without that it takes a minute, most of it for torch."""
    pytest.importorskip("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(ROOT / "tests" / "user_code.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
