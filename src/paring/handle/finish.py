"""From a gated network to the small one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from paring.core import Method, attached, gates, is_sharded, release, set_attachment, unaveraged, unwrapped
from paring.core.sharding import is_flat
from paring.gates import input_groups
from paring.graph import Report, shrink
from paring.handle.folded import outputs, same_or_raise
from paring.handle.select import widen
from paring.handle.sharded import alike, gathered
from paring.hard import LearnedStep, Sign, Staircase


def finished(
    net: nn.Module,
    method: Method,
    example: tuple[Any, ...],
    *,
    inplace: bool,
    drop_inputs: bool | None,
    verify: bool,
    said: Sequence[str] = (),
) -> tuple[nn.Module, Report]:
    """The small network and what was removed; see `Run.finish`. said: what was said already, for the report."""
    source = unwrapped(net)
    if is_flat(source):
        raise ValueError(
            f"this {type(source).__name__} holds parameters as pieces of a flat one, which finish() does not gather: shard it by "
            "torch.distributed.fsdp.fully_shard, or finish a network that holds its full state dict"
        )
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
    groups = input_groups(small)
    attached(small).recall(said)
    if unaveraged(net):
        attached(small).say(
            "this AveragedModel has averaged nothing yet, so what is finished is the network as it was when the average was "
            "made: call update_parameters(run.net) after the steps that should count"
        )
    method.finish(small)
    small.eval()
    judged, shown = _judged(small, example)
    before = [outputs(judged, shown, grad) for grad in (True, False)]
    notes = attached(small).said
    for one, given in {small: example, judged: shown}.items():
        release(one)
        set_attachment(one, None)
        widen(one, given)
    after = outputs(judged, shown, False)
    for expected in before:
        same_or_raise(expected, after, small)
    for parameter in small.parameters():
        parameter.grad = None
    small, report = shrink(small, example, inplace=inplace, verify=verify, drop_inputs=drop_inputs, input_groups=groups)
    return small, replace(report, notes=(*notes, *report.notes))


def _judged(net: nn.Module, example: tuple[Any, ...]) -> tuple[nn.Module, tuple[Any, ...]]:
    """The network whose outputs are compared, and its example: `net` itself, or where units jump a copy in float64.

    A rounding error moves a jump's input across it now and then, and its output by a whole step.
    """
    if not any(isinstance(module, Sign | Staircase | LearnedStep) for module in net.modules()):
        return net, example
    return copy.deepcopy(net).double(), tree_map(_double, example)


def _double(value: object) -> object:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
