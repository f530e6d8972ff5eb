"""Numbers that modules keep: sizes, such as how many heads an attention of the user's own has, and the ε of norms.

A network that was made smaller may need other numbers there. Which ones were changed is noted in the module, so that files
can say it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

_CHANGED = "_written_sizes"
_NUMBERS = "_written_numbers"


def written_sizes(net: nn.Module) -> dict[str, int]:
    """Sizes in this network that are not those it was built with: path of the attribute -> number."""
    return {name: int(size) for name, size in _written(net, _CHANGED).items()}


def written_numbers(net: nn.Module) -> dict[str, float]:
    """Floating-point numbers in this network that are not those it was built with: path of the attribute -> number."""
    return {name: float(number) for name, number in _written(net, _NUMBERS).items()}


def _written(net: nn.Module, noted: str) -> dict[str, float]:
    return {
        f"{path}.{leaf}" if path else leaf: getattr(module, leaf)
        for path, module in net.named_modules()
        for leaf in vars(module).get(noted, ())
    }


def write_sizes(net: nn.Module, sizes: Mapping[str, int]) -> None:
    """Change these numbers. sizes: path of the attribute -> number.

    Raises:
        KeyError: there is no such attribute, or it is no number.
    """
    for name, size in sizes.items():
        module, leaf = _holder(net, name)
        if not is_size(vars(module).get(leaf)):
            raise KeyError(name)
        _write(module, leaf, size, _CHANGED)


def write_numbers(net: nn.Module, numbers: Mapping[str, float]) -> None:
    """Change these floating-point numbers. numbers: path of the attribute -> number; one that is None may become a number.

    Raises:
        KeyError: there is no such attribute, or it is no such number.
    """
    for name, number in numbers.items():
        module, leaf = _holder(net, name)
        if leaf not in vars(module) or not (vars(module)[leaf] is None or type(vars(module)[leaf]) is float):
            raise KeyError(name)
        _write(module, leaf, number, _NUMBERS)


def _holder(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    try:
        return net.get_submodule(path), leaf
    except AttributeError as error:
        raise KeyError(name) from error


def _write(module: nn.Module, leaf: str, value: float, noted: str) -> None:
    setattr(module, leaf, value)
    changed = vars(module).get(noted, ())
    setattr(module, noted, tuple(sorted({*changed, leaf})))


def is_size(value: object) -> bool:
    """Whether this can be a size: a whole number above 0."""
    return type(value) is int and value > 0


def is_number(value: object) -> bool:
    """Whether this can be such a number: floating-point, finite and above 0."""
    return type(value) is float and math.isfinite(value) and value > 0
