"""Whether a cut pays: predicted, checked on a copy, and measured."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from paring.core import Inputs, Refusal, Removal, gates
from paring.run.surgery.carry import Cuts
from paring.run.surgery.live_cut import dry_run, step_times
from paring.run.surgery.propose_cut import Proposal, propose


@dataclass(frozen=True)
class Decision:
    """One look at what could go.

    Attributes:
        cuts: what stays; None when nothing is done.
        record: the line for the log.
        spare: layers found to have to stay whole.
    """

    cuts: Cuts | None
    record: dict[str, Any]
    spare: tuple[str, ...]


def decide(
    net: nn.Module,
    example: Inputs,
    removal: Removal,
    *,
    step: int,
    batch: int | None,
    spare: Collection[str] = (),
) -> Decision | None:
    """What to cut out of `net` now; None when nothing is settled that could go.

    Args:
        net: a gated network, left alone.
        example: example arguments.
        removal: when a cut pays.
        step: optimizer steps done, for the record.
        batch: examples in a step, for the measurement; None: as many as the example has.
        spare: layers known to have to stay whole.

    The record holds `step`, `done`, `parameters` (gates included) and `macs` before and after, `widths` of the layers
    that get smaller, `milliseconds` of forward and backward before and after (None when not measured), and `why` when
    nothing was done.
    """
    proposal = propose(net, example, removal, spare)
    if proposal is None:
        return None
    bad = (*spare, *proposal.spare)
    if proposal.saving < removal.saving or proposal.parameters[1] == proposal.parameters[0]:
        return Decision(None, {}, bad)
    record = _record(proposal, step)
    problem = dry_run(net, proposal.cuts, example)
    if not problem and removal.measure:
        before, after = step_times(net, proposal.cuts, example, batch)
        record["milliseconds"] = [1e3 * before, 1e3 * after]
        problem = None if after < before else Refusal("the step would not get faster")
    if problem:
        return Decision(None, record | {"done": False, "why": problem.reason}, bad)
    return Decision(proposal.cuts, record, bad)


def closed_counts(net: nn.Module) -> tuple[int, ...]:
    """How many entries of each gate are settled."""
    return tuple(int(gate.permanently_closed().sum()) for _, _, gate in gates(net))


def _record(proposal: Proposal, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "done": True,
        "parameters": list(proposal.parameters),
        "macs": list(proposal.macs),
        "widths": proposal.widths,
        "milliseconds": None,
    }
