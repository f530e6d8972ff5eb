"""What goes wrong with data, and the import of what only `paring[data]` brings."""

from __future__ import annotations

import importlib
from typing import Any


class DataError(RuntimeError):
    """A data file is missing, damaged, not the published one, or could not be downloaded."""


def extra(module: str) -> Any:
    """The module named `module`. Raises ImportError naming the extra to install when it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.partition(".")[0], module)
        raise ImportError(
            f"this data set needs {package}, which is not installed: run `pip install paring[data]`"
        ) from error
