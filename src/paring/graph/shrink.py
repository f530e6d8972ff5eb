"""Make a network smaller without changing its function: capture, interpret, plan, verify, apply.

`compact(net, example)` gives the smaller network, `shrink` also the `Report`. Nothing is kept that does not verify:
the removals that made a difference are found by bisection over layers, taken back, and named in the report.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from paring.graph.apply import apply
from paring.graph.capture import Example, capture
from paring.graph.graph_form import GraphFormError
from paring.graph.plan import ShrinkPlan
from paring.graph.planner import Planner
from paring.graph.report import Form, Mode, Report
from paring.graph.verify import verify as check

Wanted = Literal["auto", "module", "graph"]


def compact(
    net: nn.Module,
    example: Example,
    *,
    inplace: bool = False,
    verify: bool = True,
    drop_inputs: bool = False,
    mode: Mode | None = None,
    form: Wanted = "auto",
) -> nn.Module:
    """The network without the units that do not matter; see `shrink`."""
    return shrink(net, example, inplace=inplace, verify=verify, drop_inputs=drop_inputs, mode=mode, form=form)[0]


def shrink(
    net: nn.Module,
    example: Example,
    *,
    inplace: bool = False,
    verify: bool = True,
    drop_inputs: bool = False,
    mode: Mode | None = None,
    form: Wanted = "auto",
) -> tuple[nn.Module, Report]:
    """Remove every unit that is zero, constant or unread, where that is exact.

    example: an input with the batch first, or a tuple of inputs. inplace: change `net` itself instead of a copy.
    verify: run old and new and take back what differs; without it a size written into the user's forward shows up only
    as an error later. drop_inputs: linear layers stop reading columns that have zero weights only but stay in their
    input, such as inputs of the network or single positions of a flattened map (`SelectLinear`).
    mode: "eval" keeps the function in eval mode, "both" in train mode as well; the default is "both"
    for a network in train mode.
    form: "module" gives the user's own classes with smaller parameters, which their forward has to accept; "graph" the
    captured computation with the sizes in it rewritten (`GraphNet`, same parameter names, any batch size, other sizes
    as in the example); "auto" tries the first, then the second, before anything is taken back. A network that is
    changed in place, or not verified, keeps its own form unless "graph" is asked for.

    Raises `CaptureError` when the network cannot be traced, `GraphFormError` when only the graph form was wanted and
    there is none, `ValueError` for `inplace` together with "graph".
    """
    if inplace and form == "graph":
        raise ValueError("inplace=True keeps the network's own modules; use inplace=False for form='graph'")
    mode = mode or ("both" if net.training else "eval")
    captured = capture(net, example)
    narrow = Planner.of(net, captured, example, mode, drop_inputs)
    done = _Shrunk(narrow, narrow.plan())
    free: Planner | None = None
    if form == "graph" or (verify and narrow.found.held_back):
        free = Planner.of(net, captured, example, mode, drop_inputs, free=True)
    notes: list[str] = []

    def problem(planner: Planner, shape: Form) -> Callable[[Sequence[str]], str]:
        def of(spare: Sequence[str]) -> str:
            plan = planner.plan(spare)
            make = planner.maker(plan) if shape == "graph" else None
            return check(net, plan, example, train=mode == "both", make=make) if plan else ""

        return of

    def graph() -> _Shrunk | None:
        """The graph form with everything gone, if it holds what it promises."""
        planner = free or Planner.of(net, captured, example, mode, drop_inputs, free=True)
        try:
            why = problem(planner, "graph")(())
        except GraphFormError as error:
            why = str(error)
        if why:
            notes.append(f"no graph form: {why}")
        return None if why else _Shrunk(planner, planner.plan(), "graph")

    if form == "graph":
        assert free is not None
        done = _Shrunk(free, free.plan(), "graph")
        if verify and problem(free, "graph")(()):
            done = done.without(offenders(free.layers, problem(free, "graph")))
    elif verify:
        wider = free is not None and free.plan().removed > done.plan.removed
        best = _Shrunk(free, free.plan()) if free is not None and wider else done
        may_be_graph = form == "auto" and not inplace
        if not problem(best.planner, "module")(()):
            done = best
        elif may_be_graph and (found := graph()) is not None:
            done = found
        elif why := problem(narrow, "module")(()) if wider else "differs":
            assert why
            done = done.without(offenders(narrow.layers, problem(narrow, "module")))
    notes += done.planner.drift(mode, done.plan, list(done.rolled_back))
    before = sum(p.numel() for p in net.parameters())
    small: nn.Module
    if done.form == "graph":
        small, size = done.planner.graph(net, done.plan)
        notes.append(f"in graph form because of the size in {size}" if size else "in graph form")
    else:
        small = apply(net if inplace else copy.deepcopy(net), done.plan)
    after = sum(p.numel() for p in small.parameters())
    return small, Report(done.plan.rows, (before, after), mode, verify, done.rolled_back, tuple(notes), done.form)


@dataclass(frozen=True)
class _Shrunk:
    """One way to shrink: who plans it, the plan, the form, and layers that had to be spared."""

    planner: Planner
    plan: ShrinkPlan
    form: Form = "module"
    rolled_back: dict[str, str] = field(default_factory=dict)

    def without(self, rolled_back: dict[str, str]) -> _Shrunk:
        """The same with these layers spared."""
        return replace(self, plan=self.planner.plan(list(rolled_back)), rolled_back=rolled_back)


def offenders(layers: list[str], problem: Callable[[Sequence[str]], str]) -> dict[str, str]:
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
