"""The graph form takes back what does not verify, like the module form, and says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paring.analysis.capture import Captured
from paring.analysis.interpret import Interpretation
from paring.core import Inputs, Refusal
from paring.removal import GraphFormError, choose, compact, graph_form
from paring.removal.choose import Chooser, Shrunk, offenders
from paring.removal.graph_form import Keeps
from paring.removal.graph_net import Script
from paring.removal.rewrite import RewriteError
from tests.removal.test_compact import gap
from tests.removal.transformers_zoo import Attention


class Net(nn.Module):
    """Heads by a size in the forward, then hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.wide, self.last = Attention(16, 4), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(self.attention(x)).relu())


def biased(script: Callable[..., tuple[Script, str]]) -> Callable[..., tuple[Script, str]]:
    """A rewriting that goes wrong where the wide layer shrinks, once by an error and once in what is computed."""

    def wrong(captured: Captured, found: Interpretation, small: nn.Module, keeps: Keeps) -> tuple[Script, str]:
        made, changed = script(captured, found, small, keeps)
        if len(keeps.masks["wide"]) > int(keeps.masks["wide"].sum()):
            if not bool(keeps.masks["wide"][0]):
                raise RewriteError("not this one")
            made = replace(made, source=made.source.replace("relu.default", "neg.default"))
        return made, changed

    return wrong


@pytest.mark.parametrize("form", ["auto", "graph"])
@pytest.mark.parametrize("first", [0, 4])
def test_the_graph_form_rolls_back(form: str, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_form, "_script", biased(graph_form._script))
    torch.manual_seed(0)
    net, x = Net().double().eval(), torch.randn(2, 5, 16).double()
    with torch.no_grad():
        for m in (net.attention.q, net.attention.k, net.attention.v):
            m.weight[4:8], m.bias[4:8] = 0, 0
        net.wide.weight[first : first + 4], net.wide.bias[first : first + 4] = 0, 0
    small, report = compact(net, x, form=form)
    assert report.form == "graph"
    assert list(report.rolled_back) == ["wide"]
    assert report.rolled_back["wide"].startswith("outputs differ" if first else "not this one")
    assert "rolled back wide" in str(report)
    assert small.attention.v.out_features == 12
    assert small.wide.out_features == 12
    assert gap(net, small, torch.randn(5, 5, 16).double()) < 1e-10


class Counted(Attention):
    """Has no graph for any batch: its size becomes a number."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(len(x), *x.shape[1:]))


def test_without_any_graph_form_the_module_form_rolls_back() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(Counted(16, 4), nn.Linear(16, 8), nn.Linear(8, 2)).double().eval(), torch.randn(2, 3, 16)
    with torch.no_grad():
        for m in (net[0].q, net[0].k, net[0].v):
            m.weight[4:8], m.bias[4:8] = 0, 0
        net[1].weight[:3], net[1].bias[:3] = 0, 0
    small, report = compact(net, x.double())
    assert report.form == "module"
    assert small[1].out_features == 5
    assert any("no graph form" in note and "len(x)" in note for note in report.notes)
    assert gap(net, small, x.double()) < 1e-10
    with pytest.raises(GraphFormError, match="len"):
        compact(net, x.double(), form="graph")


def test_offenders_are_found_in_few_questions() -> None:
    layers, asked = [f"l{i}" for i in range(16)], []

    def differs(spare: Sequence[str]) -> Refusal | None:
        asked.append(set(spare))
        broken = [name for name in ("l3", "l12") if name not in spare]
        return Refusal(", ".join(broken)) if broken else None

    assert offenders([*layers, "l3"], differs) == {"l3": "l3", "l12": "l12"}
    assert asked[0] == set()
    assert asked[1] == set(layers[8:])
    assert len(asked) < 20
    assert offenders(layers, lambda spare: None) == {}
    assert list(offenders(["a", "b", "c"], lambda spare: None if len(spare) == 3 else Refusal("all"))) == [
        "a",
        "b",
        "c",
    ]


def test_of_two_layers_that_differ_only_together_one_is_spared() -> None:
    found = offenders(["a", "b", "c", "d"], lambda spare: None if {"a", "d"} & set(spare) else Refusal("a with d"))
    assert found == {"d": "a with d"}


@dataclass(frozen=True)
class Removal:
    """Stands for a plan: what goes from which layer."""

    units: dict[str, int]
    attributes: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.units)

    @property
    def removed(self) -> int:
        return sum(self.units.values())


@dataclass
class Plans:
    """Stands for a planner. held_back: there would be more to remove if sizes in the forward could change."""

    units: dict[str, int]
    held_back: bool = False
    streams: bool = True
    captures: Any = field(default_factory=lambda: SimpleNamespace(sizes=(), others=[]))

    @property
    def layers(self) -> list[str]:
        return list(self.units)

    @property
    def analysis(self) -> Any:
        return SimpleNamespace(zeros=set(), held_back=self.held_back)

    def plan(self, spare: Sequence[str] = ()) -> Removal:
        return Removal({name: n for name, n in self.units.items() if name not in spare})

    def maker(self, plan: Removal) -> str:
        return "graph"

    def without_streams(self) -> Plans:
        return self


@dataclass
class Choice:
    """A chooser among made-up plans. bad: (form, layer) that does not verify; no_graph: the graph form cannot be made."""

    narrow: Plans
    free: Plans
    bad: set[tuple[str, str]] = field(default_factory=set)
    no_graph: bool = False
    guesses: list[Removal] = field(default_factory=list)
    verified: list[tuple[str, frozenset[str], bool]] = field(default_factory=list)

    def chooser(self, monkeypatch: pytest.MonkeyPatch, mode: Any = "eval") -> Chooser:
        def verify(
            net: nn.Module, plan: Removal, example: Inputs, *, train: bool, make: Any = None, others: Any = ()
        ) -> Refusal | None:
            form = make or "module"
            self.verified.append((form, frozenset(plan.units), train))
            if form == "graph" and self.no_graph:
                raise GraphFormError("sizes everywhere")
            broken = [name for name in plan.units if (form, name) in self.bad]
            return Refusal(", ".join(broken)) if broken else None

        planner = SimpleNamespace(
            of=lambda *_, free, **__: self.free if free else self.narrow, of_graph=lambda *_: self.free
        )
        monkeypatch.setattr(choose, "verify", verify)
        monkeypatch.setattr(choose, "capture", lambda *_: None)
        monkeypatch.setattr(choose, "Planner", planner)
        monkeypatch.setattr(choose, "guesses", lambda *_: iter(self.guesses))
        return Chooser(nn.Identity(), Inputs((torch.ones(1),)), mode, False)


def told(found: Shrunk) -> tuple[str, Any, dict[str, str]]:
    return found.form, found.plan, found.rolled_back


NARROW, FREE = {"a": 2, "b": 3}, {"a": 2, "b": 3, "c": 4}


@pytest.mark.parametrize("mode", ["eval", "both"])
def test_what_verifies_in_the_network_s_own_form_is_the_result(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice(Plans(NARROW), Plans(FREE))
    chooser = choice.chooser(monkeypatch, mode)
    assert told(chooser.module_form(check=True, graph_too=True)) == ("module", Removal(NARROW), {})
    assert choice.verified == [("module", frozenset("ab"), mode == "both")]
    assert told(chooser.module_form(check=False, graph_too=True)) == ("module", Removal(NARROW), {})
    assert told(chooser.graph_form(check=False)) == ("graph", Removal(FREE), {})
    assert len(choice.verified) == 1
    assert told(chooser.graph_form(check=True)) == ("graph", Removal(FREE), {})
    assert choice.verified[1:] == [("graph", frozenset("abc"), mode == "both")]
    assert chooser.notes == []


def test_what_sizes_hold_back_goes_from_the_own_form_where_that_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice(Plans(NARROW, held_back=True), Plans(FREE))
    assert told(choice.chooser(monkeypatch).module_form(True, True)) == ("module", Removal(FREE), {})
    choice = Choice(Plans(NARROW, held_back=True), Plans(NARROW))
    found = choice.chooser(monkeypatch).module_form(True, True)
    assert found.planner is choice.narrow  # nothing more to gain
    choice = Choice(Plans(NARROW, held_back=True), Plans(FREE), {("module", "c")})
    assert told(choice.chooser(monkeypatch).module_form(True, True)) == ("graph", Removal(FREE), {})
    assert told(choice.chooser(monkeypatch).module_form(True, False)) == ("module", Removal(NARROW), {})


def test_sizes_that_modules_keep_are_tried_before_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, right = Removal(FREE, {"x": 1}), Removal({"a": 9, "b": 9}, {"y": 2})
    choice = Choice(Plans(NARROW, held_back=True), Plans(FREE), {("module", "c")}, guesses=[wrong, right])
    chooser = choice.chooser(monkeypatch, "both")
    assert told(chooser.module_form(True, True)) == ("module", right, {})
    assert chooser.notes == ["sizes that modules keep were changed: y is 2 now"]
    choice = Choice(Plans(NARROW, held_back=True), Plans(FREE), {("module", "c")}, guesses=[wrong])
    assert told(choice.chooser(monkeypatch).module_form(True, True)) == ("graph", Removal(FREE), {})


def test_an_own_form_that_does_not_verify_gives_way_to_a_graph_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice(Plans(NARROW), Plans({"a": 1}), {("module", "b")})
    assert told(choice.chooser(monkeypatch).module_form(True, True)) == ("graph", Removal({"a": 1}), {})
    found = choice.chooser(monkeypatch).module_form(True, False)
    assert told(found) == ("module", Removal({"a": 2}), {"b": "b"})


@pytest.mark.parametrize(("more", "form"), [(4, "graph"), (3, "module")])
def test_of_two_forms_that_both_spare_layers_the_one_that_removes_more(
    more: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = Choice(Plans(NARROW), Plans({"a": 9, "b": more}), {("module", "a"), ("graph", "a")})
    chooser = choice.chooser(monkeypatch)
    assert told(chooser.module_form(True, True)) == (form, Removal({"b": more}), {"a": "a"})
    assert chooser.notes == []
    assert len(choice.verified) == len(set(choice.verified)), "each question once"


def test_without_a_graph_form_its_reason_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice(Plans(NARROW), Plans(FREE), {("module", "a")}, no_graph=True)
    chooser = choice.chooser(monkeypatch)
    assert told(chooser.module_form(True, True)) == ("module", Removal({"b": 3}), {"a": "a"})
    assert chooser.notes == ["no graph form: sizes everywhere"]
    with pytest.raises(GraphFormError, match=r"^sizes everywhere$"):
        chooser.graph_form(check=True)


def test_an_empty_removal_needs_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice(Plans({}), Plans({}))
    assert told(choice.chooser(monkeypatch).module_form(True, True)) == ("module", Removal({}), {})
    assert choice.verified == []
