"""One interpretation of a network and the plans that come out of it, for either form of the result."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from torch import nn

from paring.analysis.capture import Captured, CaptureError, capture
from paring.analysis.input_groups import InputGroups
from paring.analysis.interpret import Interpretation, interpret
from paring.core import Inputs
from paring.removal.apply import apply
from paring.removal.free_plan import free_plan
from paring.removal.graph_form import Captures, GraphFormError, Keeps, graph_form
from paring.removal.graph_net import GraphNet
from paring.removal.plan import ShrinkPlan, make_plan
from paring.removal.report import Mode
from paring.removal.verify import Make


@dataclass(frozen=True)
class Planner:
    """analysis: the interpretation in eval mode, in_train: makes the one in train mode. both: constants hold in both.

    free: sizes in the forward may change; then the graph form can be made. input_groups: see `input_groups`. streams: see
    `make_plan`.
    """

    analysis: Interpretation
    in_train: Callable[[], Interpretation]
    both: bool
    drop_inputs: bool
    free: bool
    captures: Captures
    input_groups: InputGroups = field(default_factory=dict)
    streams: bool = True
    plans: dict[tuple[frozenset[str], bool], ShrinkPlan] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        net: nn.Module,
        captured: Captured,
        example: Inputs,
        mode: Mode,
        drop_inputs: bool,
        *,
        free: bool = False,
        input_groups: InputGroups | None = None,
    ) -> Planner:
        """Interpret a network that was captured on an example."""
        found = interpret(net, captured, training=False, free=free, finer=True)
        in_train = partial(interpret, net, captured, training=True, free=free, finer=True)
        return cls(found, in_train, mode == "both", drop_inputs, free, Captures(net, example), input_groups or {})

    @classmethod
    def of_graph(
        cls, net: nn.Module, example: Inputs, mode: Mode, drop_inputs: bool, input_groups: InputGroups | None = None
    ) -> Planner:
        """For the graph form alone: where the network allows it, plan on the very capture that is rewritten."""
        captures = Captures(net, example)
        try:
            captured, found = captures.of(net.training, captures.dtype)
        except (CaptureError, GraphFormError):
            captured = capture(net, example)
            return cls.of(net, captured, example, mode, drop_inputs, free=True, input_groups=input_groups)
        in_train = partial(interpret, net, captured, training=True, free=True, finer=True)
        return cls(found, in_train, mode == "both", drop_inputs, True, captures, input_groups or {})

    @cached_property
    def other(self) -> Interpretation | None:
        """The interpretation in train mode, made when it is asked for; None where it is the same."""
        return self.in_train() if self.analysis.norms or self.both else None

    @property
    def layers(self) -> list[str]:
        """Names of all layers."""
        return [site.name for site in self.analysis.sites]

    def plan(self, spare: Sequence[str] = (), *, both: bool | None = None) -> ShrinkPlan:
        """The largest exact removal that spares these layers."""
        strict = self.both if both is None else both
        key = (frozenset(spare), strict)
        if key not in self.plans:
            make = free_plan if self.free else make_plan
            other = self.other if strict else None
            self.plans[key] = make(
                self.analysis,
                spare=spare,
                drop_inputs=self.drop_inputs,
                other=other,
                input_groups=self.input_groups,
                streams=self.streams,
            )
        return self.plans[key]

    def without_streams(self) -> Planner:
        """The same, but units that LayerNorms and RMSNorms read stay."""
        return replace(self, streams=False, plans={}) if self.analysis.features else self

    def graph(
        self, net: nn.Module, plan: ShrinkPlan, *, modes: tuple[bool, ...] = (False, True)
    ) -> tuple[GraphNet, str]:
        """The graph form after this plan (made by this planner), and the first size that had to change.

        net: the network itself, or a copy in another floating type.
        """
        if not self.free or plan.kept is None:
            raise GraphFormError("the plan was made for the network's own forward")
        small = apply(copy.deepcopy(net), replace(plan, scales=()))
        return graph_form(small, self.captures, Keeps.of(self.analysis, plan.kept), modes)

    def maker(self, plan: ShrinkPlan) -> Make:
        """How to make the graph form of a copy of the network, in the modes that have to be the same."""
        modes = (False, True) if self.both else (False,)
        return lambda net: self.graph(net, plan, modes=modes)[0]

    def drift(self, mode: Mode, plan: ShrinkPlan, spare: Sequence[str]) -> list[str]:
        """A note when a plan for eval mode changes the function in train mode."""
        if mode != "eval" or not any(row.folded or row.merged for row in plan.rows) or self.other is None:
            return []
        gone = plan.removed - self.plan(spare, both=True).removed
        note = f"{gone} removed units are constant at another value in train mode: there the function changed"
        return [note] if gone else []
