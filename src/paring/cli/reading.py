"""Reading what runs leave: results and configs. Anybody may have written them; what is read fits, or is one clear error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paring.core.plain_json import JSONError, is_count, is_number, parsed, shown
from paring.data import SIZES
from paring.models import MODELS

LARGEST = 64 << 20  # bytes of a JSON file
_TEXTS = ("run", "model", "data", "method", "architecture", "source", "torch", "python", "control", "label")
_COUNTS = ("seed", "parameters", "dense_parameters", "bytes", "threads", "round", "rewind_step")
_NUMBERS = (
    "error", "train_error", "validation_error", "gated_error", "macs", "dense_macs", "adds", "nonzeros", "density", "ratio",
    "support_parameters", "support_macs", "expected_parameters", "expected_macs", "weight_density", "live_density",
    "mac_density", "train_seconds", "train_cpu_seconds", "finish_seconds", "latency_ms", "latency_128_ms", "max_abs_diff",
    "tolerance", "epochs",
)  # fmt: skip


class RunError(ValueError):
    """A file of a run cannot be used; the message says which, what was looked for, what was found and what to do."""


def read_json(path: Path, values: int | None = None) -> Any:
    """The value in a JSON file.

    Args:
        path: of the file.
        values: how many values it may hold, if not as many as usual.

    Raises:
        RunError: it cannot be read; the message names the file.
        FileNotFoundError: there is none.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    if not path.is_file():
        raise RunError(f"{path} is no file")
    if path.stat().st_size > LARGEST:
        raise RunError(f"{path} has {path.stat().st_size:,} bytes; a file like this has a few thousand")
    try:
        return parsed(path.read_bytes(), *([values] if values else []))
    except JSONError as error:
        raise RunError(f"{path} is damaged, or another file: {error}") from error


def read_result(path: Path) -> dict[str, Any] | None:
    """What a finished run came to; None when there is no such file.

    Raises:
        RunError: there is a file, but no result is in it.
    """
    if not path.exists():
        return None
    try:
        row = read_json(path)
        if not isinstance(row, dict):
            raise RunError(f"{path} holds {shown(row)} where the result of a run should be, an object")
        if missing := [key for key in ("model", "data") if key not in row]:
            raise RunError(f"{path} holds no result of a run: '{missing[0]}' is not there")
        if problem := kind_problem(row):
            raise RunError(f"{path} holds no result of a run: {problem}")
    except RunError as error:
        instead = "It stays as it is; put back the file that the run wrote, or run it again in another folder"
        raise RunError(f"{error}. {instead}") from error
    return row


def read_validation(path: Path) -> int:
    """How many examples a run set aside, from its config.json; 0 when there is none.

    Raises:
        RunError: there is a file, but no config is in it.
    """
    if not path.exists():
        return 0
    config = read_json(path)
    if not isinstance(config, dict) or not is_count(config.get("validation", 0)):
        raise RunError(f"{path} is no config of a run: 'validation' is not a number of examples")
    return int(config.get("validation", 0))


def architecture_of(row: Mapping[str, Any], path: Path) -> tuple[str, tuple[int, int, int], int]:
    """Model, shape of its inputs and number of classes, as a result names them.

    All is compared with what there is before anything is built.

    Raises:
        RunError: the result names another model or data set than there are, or other sizes than the data set has.
    """
    model, data = row["model"], row["data"]
    if model not in MODELS or model in ("mlp", "wide_resnet"):  # these two take widths, in Python
        raise RunError(f"{path}: 'model' is {shown(model)}, none that can be built from its name")
    if data not in SIZES:
        raise RunError(f"{path}: 'data' is {shown(data)}, none of {', '.join(SIZES)}")
    for key in ("shape", "classes"):
        if key not in row:
            raise RunError(f"{path}: '{key}' is not there, so this is no training whose network can be built")
    shape, classes = SIZES[data]
    if row["shape"] != list(shape) or row["classes"] != classes or row["classes"] is True:
        raise RunError(
            f"{path}: 'shape' is {shown(row['shape'])} and 'classes' is {shown(row['classes'])}, but {data} has {list(shape)} "
            f"and {classes}"
        )
    return model, shape, classes


def kind_problem(row: Mapping[str, Any]) -> str:
    """What is wrong with the known entries of a result or of a row of results; empty when nothing is."""
    for key, value in row.items():
        if value is None:
            fits = True
        elif key in _TEXTS:
            fits = isinstance(value, str)
        elif key in _COUNTS:
            fits = is_count(value)
        elif key in _NUMBERS:
            fits = is_number(value)
        elif key in ("dense", "small"):
            if isinstance(value, dict) and (inside := kind_problem(value)):
                return f"in '{key}' {inside}"
            continue
        elif key == "rounds":
            fits = isinstance(value, list) and all(isinstance(one, dict) and not kind_problem(one) for one in value)
        elif key == "config":
            fits = isinstance(value, dict)
        elif key == "widths" and isinstance(value, list):  # a bench's: of its groups
            fits = all(map(is_count, value))
        elif key == "widths":
            fits = isinstance(value, dict) and all(
                isinstance(two, list) and len(two) == 2 and all(map(is_count, two)) for two in value.values()
            )
        elif key in ("speed_latency_ms", "speed_latency_128_ms"):
            fits = isinstance(value, dict) and all(map(_in_speed, value.items())) and {"ratio", "by"} <= value.keys()
        else:
            continue
        if not fits:
            return f"'{key}' is {shown(value)}"
    return ""


def _in_speed(entry: tuple[str, Any]) -> bool:
    """Whether this may stand in a comparison of times: how much faster, or None, and numbers and words about it."""
    key, value = entry
    if key == "ratio":
        return value is None or (is_number(value) and value > 0)
    return key != "by" or isinstance(value, str)
