"""Sizes that a module of the user's own keeps as numbers, such as how many heads its attention has.

A network that was made smaller may need other numbers there. Which ones were changed is noted in the module, so that files
can say it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

_CHANGED = "_written_sizes"


def written_sizes(net: nn.Module) -> dict[str, int]:
    """Sizes in this network that are not those it was built with: path of the attribute -> number."""
    found = {}
    for path, module in net.named_modules():
        for leaf in vars(module).get(_CHANGED, ()):
            found[f"{path}.{leaf}" if path else leaf] = int(getattr(module, leaf))
    return found


def write_sizes(net: nn.Module, sizes: Mapping[str, int]) -> None:
    """Change these numbers. sizes: path of the attribute -> number.

    Raises:
        KeyError: there is no such attribute, or it is no number.
    """
    for name, size in sizes.items():
        path, _, leaf = name.rpartition(".")
        try:
            module = net.get_submodule(path)
        except AttributeError as error:
            raise KeyError(name) from error
        if not is_size(vars(module).get(leaf)):
            raise KeyError(name)
        setattr(module, leaf, size)
        changed = vars(module).get(_CHANGED, ())
        setattr(module, _CHANGED, tuple(sorted({*changed, leaf})))


def is_size(value: object) -> bool:
    """Whether this can be a size: a whole number above 0."""
    return type(value) is int and value > 0
