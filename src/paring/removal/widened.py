"""A network in float64 throughout, where its forward asks for float32.

Norms and softmaxes of language models are computed in float32 by name, whatever the parameters are. Then float64 shows rounding
as well; meanwhile such a request is one for float64, so that only the mathematics shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


class _Widened(TorchFunctionMode):
    """Calls of torch with float64 in place of float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        args, kwargs = pytree.tree_map(_wide, (args, dict(kwargs or {})))
        return (Tensor.double if func is Tensor.float else func)(*args, **kwargs)


def _wide(leaf: object) -> object:
    return torch.float64 if leaf is torch.float32 else leaf


def widened() -> AbstractContextManager[Any]:
    """Meanwhile float32 is float64 wherever it is asked for by name."""
    return _Widened()
