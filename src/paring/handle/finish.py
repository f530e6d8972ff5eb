"""From a gated network to the small one."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from paring.core import Method, attached, gates, release, set_attachment
from paring.graph import Report, shrink
from paring.handle.folded import outputs, same_or_raise
from paring.handle.select import widen
from paring.handle.sharded import alike, gathered, is_sharded


def finished(
    net: nn.Module,
    method: Method,
    example: tuple[Any, ...],
    *,
    inplace: bool,
    drop_inputs: bool | None,
    verify: bool,
) -> tuple[nn.Module, Report]:
    """The small network and what was removed; see `Run.finish`."""
    source = getattr(net, "_orig_mod", net)
    attached(source)
    if not is_sharded(source):
        small = source if inplace else copy.deepcopy(source)
    elif inplace:
        raise ValueError(
            f"this {type(source).__name__} is sharded over processes, and what is small is whole: leave inplace out"
        )
    else:
        small, example = gathered(source), alike(source, example)
    if drop_inputs is None:
        drop_inputs = any(kind == "inputs" for _, kind, _ in gates(small))
    method.finish(small)
    small.eval()
    before = [outputs(small, example, grad) for grad in (True, False)]
    release(small)
    set_attachment(small, None)
    widen(small, example)
    after = outputs(small, example, False)
    for expected in before:
        same_or_raise(expected, after, small)
    for parameter in small.parameters():
        parameter.grad = None
    return shrink(small, example, inplace=inplace, verify=verify, drop_inputs=drop_inputs)
