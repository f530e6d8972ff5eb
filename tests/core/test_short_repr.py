"""Settings as text: what is at its default is left out, so that an option that is added changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass

from paring import select
from paring.core import Stack, short_repr
from paring.methods import GMP, IMP, L0, Budget, Dense
from paring.train import Recipe


def test_only_what_was_set() -> None:
    assert short_repr(Dense()) == "Method()"
    assert short_repr(IMP(rate=0.5)) == "IMP(rate=0.5)"
    assert short_repr(GMP(allocation=select.Global(), ramp=(0.0, 0.5))) == "GMP(ramp=(0.0, 0.5,), allocation=Global())"
    assert (
        short_repr(L0(price=Budget(macs=0.5), at=("units", "inputs")))
        == "L0(price=Budget(macs=0.5), at=('units', 'inputs',))"
    )
    assert short_repr(Stack(IMP(), Dense())) == "Stack(methods=(IMP(), Method(),))"
    assert short_repr(Recipe(lr=0.5)) == "Recipe(lr=0.5)"


def test_an_option_more_changes_nothing() -> None:
    old = make_dataclass("Same", [("a", int, field(default=1))], frozen=True)
    new = make_dataclass(
        "Same", [("a", int, field(default=1)), ("b", tuple, field(default_factory=tuple))], frozen=True
    )
    for a in (1, 2):
        assert short_repr(old(a)) == short_repr(new(a))
    assert short_repr(new(1, (3,))) != short_repr(new(1))
    assert short_repr(IMP(rate=0.5)) != short_repr(IMP(rate=0.25))


def test_what_has_no_default_is_always_told() -> None:
    @dataclass(frozen=True)
    class Given:
        name: str

    assert short_repr(Given("x")) == "Given(name='x')"
    assert [one.name for one in fields(Given)] == ["name"]
