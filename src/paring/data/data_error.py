"""What goes wrong with data, and the import of what only `paring[data]` brings."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any


class DataError(RuntimeError):
    """A data file is missing, damaged, not the published one, or could not be downloaded."""


def extra(module: str) -> Any:
    """The module named `module`. Raises ImportError naming the extra to install when it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(module) from error


def folder_of(package: str) -> Path:
    """Where the package named `package` is installed, not imported. Raises ImportError like `extra`."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise _missing(package)
    return Path(found.origin).parent


def _missing(module: str) -> ImportError:
    package = {"sklearn": "scikit-learn"}.get(module.partition(".")[0], module)
    told = f"this data set needs {package}, which is not installed: run `pip install paring[data]`"
    return ImportError(told, name=module)
