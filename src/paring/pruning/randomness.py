"""The states of torch's, NumPy's and Python's global random generators, as tensors and numbers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Of all generators that data loading and training draw from."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  # what users' data loading draws from
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, list(words), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Go back to `random_state()`.

    Raises:
        KeyError, ValueError, TypeError, RuntimeError, AttributeError: it is no such state.
    """
    kind, keys, *rest = state["numpy"]
    version, words, gauss = state["python"]
    torch.set_rng_state(state["torch"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate((version, tuple(words), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
