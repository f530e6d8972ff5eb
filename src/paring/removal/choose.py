"""Which plan and which form: the largest removal that verifies.

The module form comes first. Where sizes are written into the forward it does not run at the new sizes, and the graph
form takes its place. In either form, what does not verify is found by bisection over layers and taken back; the form
that then removes more is the result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from paring.analysis.capture import Captured, capture
from paring.analysis.input_groups import InputGroups
from paring.core import Inputs, Refusal
from paring.removal.graph_form import GraphFormError
from paring.removal.plan import ShrinkPlan
from paring.removal.planner import Planner
from paring.removal.report import Form, Mode
from paring.removal.silence import Silence, silence, silent_layers, silent_modules
from paring.removal.size_attributes import guesses
from paring.removal.verify import verify

Differs = Callable[[Sequence[str]], Refusal | None]


@dataclass(frozen=True)
class Shrunk:
    """One way to shrink: who plans it, the plan, the form, layers that had to be spared, and those that were silenced before."""

    planner: Planner
    plan: ShrinkPlan
    form: Form = "module"
    rolled_back: dict[str, str] = field(default_factory=dict)
    silenced: Silence = field(default_factory=Silence)

    def without(self, rolled_back: dict[str, str]) -> Shrunk:
        """The same with these layers spared."""
        return replace(self, plan=self.planner.plan(list(rolled_back)), rolled_back=rolled_back)


@dataclass(frozen=True)
class Chooser:
    """Looks for the best way to shrink a network; `notes` is what the user should know of it."""

    net: nn.Module
    example: Inputs
    mode: Mode
    drop_inputs: bool
    notes: list[str] = field(default_factory=list)
    input_groups: InputGroups = field(default_factory=dict)

    def graph_form(self, check: bool) -> Shrunk:
        """The graph form. Raises `GraphFormError` when there is none that verifies."""
        planner = Planner.of_graph(self.net, self.example, self.mode, self.drop_inputs, self.input_groups)
        found = self._graph(planner) if check else Shrunk(planner, planner.plan(), "graph")
        if isinstance(found, Refusal):
            raise GraphFormError(found.reason)
        return found

    def module_form(self, check: bool, graph_too: bool) -> Shrunk:
        """The module form; graph_too: or the graph form, where that removes more."""
        captured = capture(self.net, self.example)
        narrow = self._planner(captured, free=False)
        if check and (silent := self._silent(captured, narrow)).names:
            net = silence(copy.deepcopy(self.net), silent)
            return replace(replace(self, net=net).module_form(check, graph_too), silenced=silent)
        stuck = self._streams_differ(narrow) if check else None
        narrow = narrow.without_streams() if stuck else narrow
        done = Shrunk(narrow, narrow.plan())
        if not check:
            return done
        differs = self._differs(narrow, "module")
        wide = narrow.analysis.held_back or (stuck is not None and graph_too)
        free = self._planner(captured, free=True) if wide else None
        own = free.without_streams() if stuck and free is not None else free
        if own is not None and own.plan().removed > done.plan.removed:
            if not self._differs(own, "module")(()):
                return self._said(Shrunk(own, own.plan()), stuck)
            if (found := self._with_attributes(own)) is not None:
                return self._said(Shrunk(own, found), stuck)
        elif not differs(()) and not (stuck and graph_too):
            return self._said(done, stuck)
        other: Shrunk | Refusal | None = None
        if graph_too:
            free = free or self._planner(captured, free=True)
            other = self._graph(free)
        if isinstance(other, Refusal):
            self.notes.append(f"no graph form: {other}")
        elif other is not None and not other.rolled_back and (differs(()) or other.plan.removed > done.plan.removed):
            return other
        if differs(()):
            done = done.without(offenders(narrow.layers, differs))
        more = isinstance(other, Shrunk) and other.plan.removed > done.plan.removed
        return other if more and isinstance(other, Shrunk) else self._said(done, stuck)

    def _streams_differ(self, planner: Planner) -> Refusal | None:
        """Why the network differs once units go that LayerNorms or RMSNorms read, if it does not without that."""
        less = planner.without_streams()
        if less is planner or less.plan().removed == planner.plan().removed:
            return None
        why = self._differs(planner, "module")(())
        return None if self._differs(less, "module")(()) is not None else why

    def _said(self, done: Shrunk, stuck: Refusal | None) -> Shrunk:
        """The result, with a note of what had to stay in it."""
        if stuck is not None:
            self.notes.append(f"units that norms over them read stay in this form, where without them {stuck}")
        return done

    def _with_attributes(self, free: Planner) -> ShrinkPlan | None:
        """The plan with sizes that modules keep as attributes changed, if the network's own forward runs so."""
        for plan in guesses(self.net, self.example, free.analysis, free.plan()):
            if verify(self.net, plan, self.example, train=self.mode == "both") is None:
                name, size = next(iter(plan.attributes.items()))
                more = f" and {len(plan.attributes) - 1} more" if len(plan.attributes) > 1 else ""
                self.notes.append(f"sizes that modules keep were changed: {name} is {size} now{more}")
                return plan
        return None

    def _silent(self, captured: Captured, planner: Planner) -> Silence:
        """Layers of branches that only ever add zeros, if the network runs without them."""
        if not planner.analysis.zeros:
            return Silence()
        analyses = [planner.analysis, *([planner.other] if self.mode == "both" and planner.other else [])]
        paths, whole = silent_layers(self.net, captured, analyses), silent_modules(self.net, captured, analyses)
        nothing, train = ShrinkPlan((), (), {}, ()), self.mode == "both"
        refused: Refusal | None = None
        for chosen in Silence.ways(paths, whole):

            def made(net: nn.Module, chosen: Silence = chosen) -> nn.Module:
                return silence(copy.deepcopy(net), chosen)

            refused = verify(self.net, nothing, self.example, train=train, make=made)
            if not refused:
                return chosen
        if refused:
            self.notes.append(f"{', '.join(paths or whole)} only add zeros and stay: {refused}")
        return Silence()

    def _planner(self, captured: Captured, *, free: bool) -> Planner:
        return Planner.of(
            self.net,
            captured,
            self.example,
            self.mode,
            self.drop_inputs,
            free=free,
            input_groups=self.input_groups,
        )

    def _graph(self, planner: Planner) -> Shrunk | Refusal:
        """The graph form without what does not verify; or why there is none even when nothing is removed."""
        whole, differs = Shrunk(planner, planner.plan(), "graph"), self._differs(planner, "graph")
        if differs(()) and planner.captures.sizes:  # right at the example's sizes, perhaps
            planner.captures.fix_sizes()
            differs = self._differs(planner, "graph")
        if not differs(()):
            return whole
        return differs(planner.layers) or whole.without(offenders(planner.layers, differs))

    def _differs(self, planner: Planner, form: Form) -> Differs:
        """Layers to spare -> what is wrong with the result then, None for nothing; asked once for each."""
        seen: dict[frozenset[str], Refusal | None] = {}

        def ask(spare: Sequence[str]) -> Refusal | None:
            plan, train = planner.plan(spare), self.mode == "both"
            if form == "module":
                return verify(self.net, plan, self.example, train=train) if plan else None
            try:
                others = planner.captures.others
                return verify(self.net, plan, self.example, train=train, make=planner.maker(plan), others=others)
            except GraphFormError as error:
                return Refusal(str(error))

        def differs(spare: Sequence[str]) -> Refusal | None:
            key = frozenset(spare)
            if key not in seen:
                seen[key] = ask(spare)
            return seen[key]

        return differs


def offenders(layers: Sequence[str], differs: Differs) -> dict[str, str]:
    """Layers whose units must be spared so that the rest verifies, each with what it breaks."""
    layers = list(dict.fromkeys(layers))
    found: dict[str, str] = {}

    def grow(allowed: list[str], candidates: list[str]) -> list[str]:
        """The candidates that can shrink next to the allowed ones."""
        why = differs([name for name in layers if name not in {*allowed, *candidates}])
        if why is None:
            return candidates
        if len(candidates) == 1:
            found[candidates[0]] = why.reason
            return []
        half = len(candidates) // 2
        left = grow(allowed, candidates[:half])
        return left + grow(allowed + left, candidates[half:])

    grow([], layers)
    return found
