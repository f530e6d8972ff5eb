"""From a gated network to the small one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from paring.analysis.autocast import check_forward, is_autocast, take_off
from paring.core import Inputs, Method, attached, gates, is_sharded, release, set_attachment, unaveraged, unwrapped
from paring.core.fresh import let_go
from paring.core.sharding import is_flat
from paring.gates import input_groups
from paring.removal import Report, compact
from paring.removal.tolerances import differs
from paring.run.distributed.sharded import alike, gathered
from paring.run.missed import Asked
from paring.run.probe import NetworkProbe
from paring.run.surgery.folded import Judged, outputs, same_in_own_type, same_or_raise
from paring.run.surgery.gated_select import widen


def finished(
    net: nn.Module,
    method: Method,
    probe: NetworkProbe,
    *,
    inplace: bool,
    drop_inputs: bool | None,
    verify: bool,
    fuse_norms: bool = False,
    said: Sequence[str] = (),
    undone: Sequence[str] = (),
    quiet: bool = False,
) -> tuple[nn.Module, Report]:
    """The small network and what was removed; see `Run.finish`.

    Args:
        net, method, inplace, drop_inputs, verify, fuse_norms: as there.
        probe: of the network.
        said: what was said already, for the report.
        undone: what the loop left undone, to be said now.
        quiet: say it in the report only, and what there is to say of the last decisions and the size.
    """
    example, source = probe.example, unwrapped(net)
    if is_flat(source):
        raise ValueError(
            f"this {type(source).__name__} holds parameters as pieces of a flat one, which finish() does not gather: shard it by "
            "torch.distributed.fsdp.fully_shard, or finish a network that holds its full state dict"
        )
    attached(source)
    check_forward(source)
    if not is_sharded(source):
        small = source if inplace else copy.deepcopy(let_go(source))
    elif inplace:
        raise ValueError(
            f"this {type(source).__name__} is sharded over processes, and what is small is whole: leave inplace out"
        )
    else:
        small, example = gathered(source), Inputs(*alike(source, (example.args, dict(example.kwargs))))
    if drop_inputs is None:
        drop_inputs = any(kind == "inputs" for _, kind, _ in gates(small))
    groups = input_groups(small)
    memory = attached(small)
    memory.quiet = quiet
    memory.recall(said)
    for message in undone:
        memory.say(message)
    if unaveraged(net):
        memory.say(
            "this AveragedModel has averaged nothing yet, so what is finished is the network as it was when the average was "
            "made: call update_parameters(run.net) after the steps that should count"
        )
    method.finish(small)
    small.eval()
    size = Asked.of(small, method, probe, drop_inputs)
    notes = _without_autocast(small, example)
    _fold(small, example)
    for parameter in small.parameters():
        parameter.grad = None
    small, report = compact(
        small,
        example,
        inplace=inplace,
        verify=verify,
        drop_inputs=drop_inputs,
        fuse_norms=fuse_norms,
        input_groups=groups,
    )
    for message in size.missed(small, report, example):
        memory.say(message)
    return small, replace(report, notes=(*memory.said, *notes, *report.notes))


def _fold(small: nn.Module, example: Inputs) -> None:
    """Multiply the gates into the weights, if that leaves the function alone.

    Raises:
        RuntimeError, ValueError: it does not, or the network's own outputs are NaN.
    """
    judged = Judged.of(small, example)
    before, own = [judged.outputs(grad) for grad in (True, False)], outputs(small, example, False)
    _released(judged.net, judged.example)
    after = judged.outputs()
    for expected in before:
        same_or_raise(expected, after, judged, small)
    _released(small, example)
    if judged.dtype == torch.float64:
        same_in_own_type(own, outputs(small, example, False), before[1], small)


def _released(net: nn.Module, example: Inputs) -> None:
    release(net)
    set_attachment(net, None)
    widen(net, example)


def _without_autocast(small: nn.Module, example: Inputs) -> list[str]:
    """Take mixed precision off the network's forward where a library put it there; what to note of that.

    Raises:
        ValueError: the forward does more than that.
    """
    held = outputs(small, example, False) if is_autocast(small) else []
    if not take_off(small):
        return []
    if differs(held, outputs(small, example, False), torch.bfloat16):
        raise ValueError(
            f"the forward that was put on this {type(small).__name__} itself does more than mixed precision, and would be lost. "
            "Take it off (del net.forward), or write it into the class"
        )
    return [
        "mixed precision that was wrapped around the forward was taken off: the finished network computes in its weights' type"
    ]
