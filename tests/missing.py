"""Tests that reach an extra which is not installed are skipped, wherever they reach it.

A failure counts as that only when an ImportError is among its causes whose module really cannot be found. Where all
extras are installed (`make test`), nothing is skipped by this.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

EXTRAS = {
    "constriction": "codec", "zstandard": "bench", "torch_pruning": "bench", "simplify": "bench", "numba": "bits",
    "scipy": "hard", "sklearn": "data", "pooch": "data", "matplotlib": "report", "onnx": "onnx", "onnxscript": "onnx",
    "onnxruntime": "onnx", "ray": "sweep", "tyro": "cli", "rich": "cli", "transformers": "transformers",
    "accelerate": "frameworks", "lightning": "lightning", "ignite": "frameworks", "skorch": "frameworks",
}  # fmt: skip


def lacks(module: str) -> bool:
    """Whether this module is not installed."""
    try:
        return importlib.util.find_spec(module) is None
    except ImportError:
        return True


def missing_extra(error: BaseException | None) -> str:
    """Why a test that ended in this error is to be skipped; empty when it failed."""
    for one in _causes(error):
        module = (one.name or "").partition(".")[0] if isinstance(one, ImportError) else ""
        if module in EXTRAS and lacks(module):
            return f"needs {module} (extra '{EXTRAS[module]}'), which is not installed"
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
