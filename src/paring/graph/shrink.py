"""Make a network smaller without changing its function: capture, interpret, plan, verify, apply.

`compact(net, example)` gives the smaller network, `shrink` also the `Report`. Nothing is kept that does not verify:
the removals that made a difference are found by bisection over layers, taken back, and named in the report.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import nn

from paring.graph.apply import apply
from paring.graph.capture import Example, capture
from paring.graph.interpret import interpret
from paring.graph.plan import ShrinkPlan, make_plan
from paring.graph.report import Mode, Report
from paring.graph.verify import verify as check


def compact(
    net: nn.Module,
    example: Example,
    *,
    inplace: bool = False,
    verify: bool = True,
    drop_inputs: bool = False,
    mode: Mode | None = None,
) -> nn.Module:
    """The network without the units that do not matter; see `shrink`."""
    return shrink(net, example, inplace=inplace, verify=verify, drop_inputs=drop_inputs, mode=mode)[0]


def shrink(
    net: nn.Module,
    example: Example,
    *,
    inplace: bool = False,
    verify: bool = True,
    drop_inputs: bool = False,
    mode: Mode | None = None,
) -> tuple[nn.Module, Report]:
    """Remove every unit that is zero, constant or unread, where that is exact.

    example: an input with the batch first, or a tuple of inputs. inplace: change `net` itself instead of a copy.
    verify: run old and new and take back what differs; without it a size written into the user's forward shows up only
    as an error later. drop_inputs: linear layers stop reading columns that have zero weights only but stay in their
    input, such as inputs of the network or single positions of a flattened map (`SelectLinear`).
    mode: "eval" keeps the function in eval mode, "both" in train mode as well; the default is "both"
    for a network in train mode.

    Raises `CaptureError` when the network cannot be traced.
    """
    mode = mode or ("both" if net.training else "eval")
    captured = capture(net, example)
    found = interpret(net, captured, training=False)
    other = interpret(net, captured, training=True) if found.norms or mode == "both" else None

    def plan_for(spare: Sequence[str]) -> ShrinkPlan:
        return make_plan(found, spare=spare, drop_inputs=drop_inputs, other=other if mode == "both" else None)

    def problem(spare: Sequence[str]) -> str:
        plan = plan_for(spare)
        return check(net, plan, example, train=mode == "both") if plan else ""

    plan = plan_for(())
    rolled_back: dict[str, str] = {}
    if verify and problem(()):
        rolled_back = _offenders([site.name for site in found.sites], problem)
        plan = plan_for(list(rolled_back))
    notes: list[str] = []
    if mode == "eval" and other is not None and any(row.folded for row in plan.rows):
        strict = make_plan(found, spare=list(rolled_back), drop_inputs=drop_inputs, other=other)
        gone = sum(row.before - row.after for row in plan.rows) - sum(row.before - row.after for row in strict.rows)
        if gone:
            notes.append(
                f"{gone} removed units are constant at another value in train mode: there the function changed"
            )
    before = sum(p.numel() for p in net.parameters())
    small = apply(net if inplace else copy.deepcopy(net), plan)
    after = sum(p.numel() for p in small.parameters())
    return small, Report(plan.rows, (before, after), mode, verify, rolled_back, tuple(notes))


def _offenders(layers: list[str], problem: Callable[[Sequence[str]], str]) -> dict[str, str]:
    """Layers whose units must be spared so that the rest verifies, each with what it breaks."""
    layers = list(dict.fromkeys(layers))
    found: dict[str, str] = {}

    def grow(allowed: list[str], candidates: list[str]) -> list[str]:
        """The candidates that can shrink next to the allowed ones."""
        why = problem([name for name in layers if name not in {*allowed, *candidates}])
        if not why:
            return candidates
        if len(candidates) == 1:
            found[candidates[0]] = why
            return []
        half = len(candidates) // 2
        left = grow(allowed, candidates[:half])
        return left + grow(allowed + left, candidates[half:])

    grow([], layers)
    return found
