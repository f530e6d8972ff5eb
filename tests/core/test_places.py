"""`at=` of every method: one value, made by one function, that refuses typing errors before anything is trained."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from paring import methods
from paring.analysis import Wiring, wiring
from paring.cli.config import digest, plain
from paring.cli.tickets.retrain import Retrain
from paring.core import Method, Place, Places, short_repr
from paring.gates import sites
from paring.testing import ZOO, Chain, chain_batch

NAMED = [getattr(methods, name) for name in methods.__all__]
PLACED: list[type[Any]] = [
    kind for kind in NAMED if issubclass(kind, Method) and any(f.name == "at" for f in dataclasses.fields(kind))
]
KIND = {kind: Places.of(kind().at).kinds[0] for kind in PLACED}
each = pytest.mark.parametrize("kind", PLACED, ids=lambda kind: kind.__name__)


def test_all_methods_with_places_are_tried() -> None:
    parts = {type(part) for row in ZOO for part in getattr(row.make(), "methods", (row.make(),))}
    assert {part for part in parts if hasattr(part, "at")} == set(PLACED)
    assert len(PLACED) >= 15


@each
def test_text_list_tuple_and_value_are_the_same(kind: type[Any]) -> None:
    word = KIND[kind]
    one = kind(at=word)
    assert one.at == Places((word,))
    assert all(kind(at=at) == one for at in ([word], (word,), one.at, Place(word), [Place(word)]))  # type: ignore[arg-type]
    assert len({one, kind(at=[word])}) == 1, "hashes alike"
    several = kind(at=[f"{word}:conv1", f"{word}:fc1"])
    assert several == kind(at=(f"{word}:conv1", f"{word}:fc1")) != one
    assert several == dataclasses.replace(several, at=several.at) == pickle.loads(pickle.dumps(copy.deepcopy(several)))


@each
def test_configs_and_labels_show_what_was_written(kind: type[Any]) -> None:
    word = KIND[kind]
    one, several = kind(at=f"{word}:conv1"), kind(at=[f"{word}:conv1", f"{word}:fc1"])
    assert plain(one)["at"] == f"{word}:conv1"
    assert plain(several)["at"] == [f"{word}:conv1", f"{word}:fc1"]
    assert short_repr(one) == f"{kind.__name__}(at='{word}:conv1')"
    assert short_repr(several) == f"{kind.__name__}(at=('{word}:conv1', '{word}:fc1',))"
    assert f"at='{word}:conv1'" in repr(one)
    assert short_repr(kind()) == f"{kind.__name__}()"


@each
def test_a_misspelt_kind_is_refused_when_the_method_is_made(kind: type[Any]) -> None:
    word = KIND[kind]
    typo = word[:3] + word[4:]
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(at='{typo}'\): .*did you mean '{word}'"):
        kind(at=typo)
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(at='{typo}:fc1'\): "):
        kind(at=[word, f"{typo}:fc1"])
    with pytest.raises(ValueError, match="'conv1' is none of"):
        kind(at="conv1")
    with pytest.raises(ValueError, match="name at least one place"):
        kind(at=())
    for wrong in (3, None, [None], {"units": 1}):
        with pytest.raises(ValueError, match="a place is a text"):
            kind(at=wrong)


@pytest.mark.parametrize("kind", [kind for kind in PLACED if kind is not methods.L0], ids=lambda kind: kind.__name__)
def test_a_kind_that_the_method_does_not_take_is_refused_too(kind: type[Any]) -> None:
    other = "inputs" if KIND[kind] != "inputs" else "units"
    with pytest.raises(ValueError, match=f"{kind.__name__} takes places at '{KIND[kind]}'.*, not '{other}'"):
        kind(at=[KIND[kind], f"{other}:conv1"])


@pytest.fixture(scope="module")
def wired() -> tuple[nn.Module, Wiring]:
    net = Chain()
    return net, wiring(net, chain_batch(2)[0])


@each
def test_unknown_layers_are_refused_when_it_is_attached(kind: type[Any], wired: tuple[nn.Module, Wiring]) -> None:
    net, found = wired
    probe: Any = SimpleNamespace(wiring=found, example=(chain_batch(2)[0],))
    settings = {"activations": "none"} if kind is methods.Binarize else {}
    for selector, part in (("cnov1", "cnov1"), ("!cnov1", "cnov1"), ("conv1|cnov2", "cnov2"), ("head.*", r"head\.\*")):
        method = kind(at=f"{KIND[kind]}:{selector}", **settings)
        with pytest.raises(ValueError, match=f"this Chain has no layer '{part}'.*; it has conv1, norm1"):
            method.attach(net, probe)


def test_layers_are_named_and_shortened() -> None:
    net = nn.Sequential(*[nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(20)], nn.Linear(3, 1))
    found = wiring(net, chain_batch(2)[0].new_zeros(2, 3))
    assert [site.layer for site in sites(net, found, "weights:0.0|1.*|Conv1d")] == ["0.0", "1.0"]
    with pytest.raises(ValueError, match=r"no layer '0\.2' .did you mean '0\.0'.*; it has 0\.0, 1\.0, .* and 9 more"):
        sites(net, found, "weights:0.2")
    with pytest.raises(ValueError, match=r"no layer '5' .did you mean '5\.\*'"):
        sites(net, found, "weights:!5")
    with pytest.raises(ValueError, match=r"joined by '\|': 'weights:!0\.0\|!1'"):
        sites(net, found, "weights:!0.0, !1")
    with pytest.raises(ValueError, match=r"no layer '0\.1'"):  # it has nothing to prune
        sites(net, found, "weights:0.1")


def test_trainings_in_isolation_take_the_searchs_places() -> None:
    search: Any = methods.IMP()
    plainly = Retrain(search, 1)
    assert digest(Retrain(search, 1, at="weights")) == digest(plainly)
    assert plain(Retrain(search, 1, at=["weights:fc1"]))["at"] == "weights:fc1"


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (["units:!a", "units:!b"], ("units:!a|!b",)),
        (["units:Conv2d", "units:!b"], ("units:Conv2d|!b",)),
        (["units", "weights:fc", "units:!a"], ("units:!a", "weights:fc")),
        (["units:a", "units:c|!b", "weights:!d"], ("units:a", "units:c|!b", "weights:!d")),
    ],
)
def test_what_only_excludes_holds_in_all_places_of_its_kind(given: list[str], written: tuple[str, ...]) -> None:
    assert Places.of(given).written == written
    assert Places.of(Places.of(given)) == Places.of(given)
