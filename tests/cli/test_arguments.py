"""Command-line forms of prices and relaxations: what is shown reads back as the same value, and refusals say why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paring.cli.arguments import (
    RELAXATIONS,
    _show_price,
    _show_relaxation,
    parse_price,
    parse_relaxation,
    read,
)
from paring.cli.hold_argument import parse_hold, show_hold
from paring.cli.method_list import METHODS
from paring.core import Stack
from paring.gates import relax
from paring.methods import L0, Budget, Hold, Price, Shrink
from paring.testing import ZOO

rates = st.floats(0, 1e9)
fractions = st.floats(0, 1, exclude_min=True)
names = st.text("abcfnv019._*?[]!|", min_size=1, max_size=8).filter(lambda name: name not in ("of", "rate"))
layers = st.lists(st.tuples(names, rates), max_size=3, unique_by=lambda pair: pair[0]).map(tuple)
prices = st.builds(Price, rates, st.sampled_from(["params", "macs"]), layers)
asked = st.one_of(
    st.fixed_dictionaries({"params": fractions}),
    st.fixed_dictionaries({"macs": fractions}),
    st.fixed_dictionaries({"params": fractions, "macs": fractions}),
)
budgets = st.builds(lambda sizes, ascent: Budget(**sizes, ascent=ascent), asked, st.floats(1e-6, 1e6))
widths = st.floats(1e-3, 1e3)
relaxations = st.one_of(
    st.builds(
        relax.HardConcrete,
        widths,
        st.floats(-5, -1e-3),
        st.floats(1.001, 5),
        st.sampled_from(["paper", "median"]),
    ),
    st.builds(relax.Concrete, widths, st.floats(0.01, 0.99)),
    st.builds(relax.RectifiedGaussian, widths),
    st.builds(relax.RectifiedLogistic, widths),
    st.just(relax.StraightThroughBernoulli()),
)


@given(prices | budgets)
def test_prices_read_back(value: Price | Budget) -> None:
    (text,) = _show_price(value)
    assert parse_price(text) == value
    assert " " not in text, "one word on a command line"


@given(relaxations)
def test_relaxations_read_back(value: relax.Relaxation) -> None:
    (text,) = _show_relaxation(value)
    assert parse_relaxation(text) == value


@given(rates)
def test_a_number_is_a_price_per_parameter(rate: float) -> None:
    assert parse_price(str(rate)) == Price(rate)
    assert _show_price(rate) == [str(rate)]


def test_every_relaxation_and_every_method_of_the_zoo_has_a_name() -> None:
    for name, kind in RELAXATIONS.items():
        assert type(parse_relaxation(name)) is kind
        assert parse_relaxation(name) == kind()
        assert _show_relaxation(kind()) == [name]
    for row in ZOO:
        method = row.make()
        parts = method.methods if isinstance(method, Stack) else (method,)
        assert all(type(part) in METHODS.values() or isinstance(part, Shrink) for part in parts)  # --method, --shrink


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1e-6", Price(1e-6)),
        ("rate=1e-6,of=macs", Price(1e-6, "macs")),
        ("rate=1e-6, of=macs, conv1 = 1e-4", Price(1e-6, "macs", (("conv1", 1e-4),))),
        ("conv*=2", Price(0.0, "params", (("conv*", 2.0),))),
        ("budget:macs=0.25", Budget(macs=0.25)),
        ("budget:macs=0.25,params=0.1,ascent=3", Budget(params=0.1, macs=0.25, ascent=3.0)),
    ],
)
def test_prices_as_people_write_them(text: str, wanted: Price | Budget) -> None:
    assert parse_price(text) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("abc", r"price 'abc': not a number that is at least 0; examples: 1e-6"),
        ("-1", r"price '-1': not a number that is at least 0"),
        ("nan", r"price 'nan': not a number that is at least 0"),
        ("", r"price '': not a number that is at least 0"),
        ("tax:1", r"price 'tax:1': write a number, 'rate=...,of=macs' or 'budget:macs=0.25'"),
        ("rate=-1", r"the rate of 'rate' is -1.0; a price is a number that is not negative"),
        ("conv1=-2", r"the rate of 'conv1' is -2.0; a price is a number that is not negative"),
        ("rate=1,of=bytes", r"of='bytes'\): choose one of params, macs"),
        ("rate=x", r"'rate=x': 'x' is not a number"),
        ("rate=1,conv1", r"expected name=value, got 'conv1'"),
        ("=1", r"expected name=value, got '=1'"),
        ("budget:", r"'budget:': expected name=value, got ''"),
        ("budget:macs", r"expected name=value, got 'macs'"),
        ("budget:macs=much", r"'much' is not a number"),
        ("budget:bytes=0.5,flops=1", r"a budget has params, macs, ascent and multiple_of, not bytes, flops"),
        ("budget:macs=1.5", r"Budget\(macs=1.5\): a fraction of the dense network, in \(0, 1\]"),
        ("budget:params=0", r"Budget\(params=0.0\): a fraction"),
        ("budget:ascent=3", r"Budget\(\) asks for nothing"),
        ("budget:macs=0.5,ascent=0", r"Budget\(ascent=0.0\): must be a positive number"),
    ],
)
def test_prices_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_price(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("soft", r"gate 'soft': choose one of hard_concrete, concrete, .*bernoulli"),
        ("", r"gate '': choose one of"),
        ("concrete:alpha=1", r"concrete has beta, threshold, not alpha"),
        ("hard_concrete:beta", r"expected name=value, got 'beta'"),
        ("hard_concrete:beta=x", r"'x' is not a number"),
        ("hard_concrete:beta=0", r"beta=0.0, but beta is a width"),
        ("hard_concrete:gamma=0.1", r"must reach beyond \[0, 1\] on both sides"),
        ("hard_concrete:test=mode", r"test='mode' is unknown; use 'paper' or 'median'"),
        ("concrete:threshold=2", r"threshold=2.0"),
        ("rectified_gaussian:sigma=-1", r"sigma=-1.0"),
    ],
)
def test_relaxations_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_relaxation(text)


@pytest.mark.parametrize(
    "hold", [Hold(), Hold(0.4), Hold(0.4, rewind=0), Hold(0.5, "2ep", 0.1), Hold(drop=(("fc1", 0.25), ("fc2", 0.5)))]
)
def test_a_hold_is_shown_as_it_is_read(hold: Hold) -> None:
    again = parse_hold(*show_hold(hold))
    assert (again.last, str(again.rewind), again.drop) == (hold.last, str(hold.rewind), hold.drop)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("much", "is not a number"),
        ("last=0.4,last=0.5", "stands there twice"),
        ("last=0.4,rewind", "is no name=value"),
        ("end=0.4", "a hold has last, rewind, drop"),
        ("last=x", "is not a number"),
        ("last=0.4,drop=0.1,drop:fc1=0.2", "give one drop for all layers"),
        ("last=2", "a fraction of training"),
    ],
)
def test_holds_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_hold(text)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], L0()),
        (["--price", "1e-4", "--at", "inputs"], L0(price=1e-4, at="inputs")),
        (
            ["--at", "units:Conv2d", "inputs:Linear", "--price", "budget:macs=0.25"],
            L0(price=Budget(macs=0.25), at=("units:Conv2d", "inputs:Linear")),
        ),
        (["--keep", "fc1", "0.8", "fc2", "0.6"], L0(keep=(("fc1", 0.8), ("fc2", 0.6)))),
        (["--keep", "0.7", "--hold", "0.2", "--prior", "0.3"], L0(keep=0.7, hold=0.2, prior=0.3)),
        (["--hold", "last=0.4,rewind=1ep,drop=0.5"], L0(hold=Hold(0.4, rewind="1ep", drop=0.5))),
        (["--hold", "last=0.4,drop:fc1=0.25"], L0(hold=Hold(0.4, drop=(("fc1", 0.25),)))),
        (["--hold", "none"], L0()),
        (["--gate", "concrete:beta=0.5", "--gate-lr", "2"], L0(gate=relax.Concrete(beta=0.5), gate_lr=2.0)),
        (["--per-example", "--l2", "1e-3", "--detach-l2"], L0(per_example=True, l2=1e-3, detach_l2=True)),
    ],
)
def test_a_method_is_read_from_words(words: list[str], wanted: L0) -> None:
    assert read(L0, words, prog="x", description="") == wanted


@dataclass(frozen=True)
class Asked:
    """What is asked.

    Args:
        what: a file.
        sizes: some numbers.
        deep: more of it.
    """

    what: Path
    sizes: tuple[float, ...] = ()
    deep: int = 1


@pytest.mark.parametrize(
    "words",
    [
        "job.py --sizes 0.5 0.25 --deep 2",
        "--what job.py --sizes 0.5 0.25 --deep 2",
        "--deep 2 job.py --sizes 0.5 0.25",
        "--sizes 0.5 0.25 --deep 2 job.py",
        "--sizes 0.5 0.25 --deep=2 --what=job.py",
    ],
)
def test_the_first_word_needs_no_name_and_may_stand_anywhere(words: str) -> None:
    found = read(Asked, words.split(), prog="x", description="", first="what")
    assert (found.what, found.sizes, found.deep) == (Path("job.py"), (0.5, 0.25), 2)
    assert isinstance(found, Asked)


def test_a_number_that_is_none_is_refused_by_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(Asked, ["job.py", "--sizes", "half"], prog="x", description="", first="what")
    assert "--sizes: could not convert string to float: 'half'" in capsys.readouterr().err


def test_help_shows_defaults_as_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read(L0, ["--help"], prog="the program", description="what it does")
    shown: Any = capsys.readouterr().out
    assert stop.value.code == 0
    for text in ("the program", "what it does", "(default: hard_concrete)", "(default: 0.0)", "RATE|budget:NAME=F"):
        assert text in shown
