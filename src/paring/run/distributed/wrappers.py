"""Which DistributedDataParallel wrappers hold a network, told by torch when they are made: nobody has to search for them.

One made before this module was imported is not known; whatever attaches a method imports it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

_MADE: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()
_RENEWED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _note(module: nn.Module, name: str, part: nn.Module | None) -> None:
    if isinstance(module, DistributedDataParallel):
        _MADE.add(module)


register_module_module_registration_hook(_note)


def note_renewed(wrapper: nn.Module) -> None:
    """Whoever made this wrapper makes it anew after every cut."""
    _RENEWED.add(wrapper)


def fixed_wrappers(net: nn.Module) -> Iterator[nn.Module]:
    """Wrappers around `net`, or around a network that it is part of, that nobody makes anew."""
    for wrapper in list(_MADE):
        inside = getattr(wrapper, "module", None)
        if wrapper not in _RENEWED and isinstance(inside, nn.Module) and any(m is net for m in inside.modules()):
            yield wrapper
