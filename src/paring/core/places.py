"""Where a method acts, as its `at=` says: `"units"`, `"weights:!fc2"`, `["units:Conv2d", "inputs:Linear"]`.

A place is `KIND` or `KIND:SELECTOR`. KIND is `units`, `inputs`, `weights`, `heads`, `blocks` or `stream`. SELECTOR is a layer type (`Conv2d`), a
module name, or a pattern over names (`features.*`), several of them joined by `|`; a leading `!` excludes, from all places of
its kind where nothing else is said.

Every method turns its `at` into one value, `Places`, with one function, `settle_places`: a kind that is misspelt, or that the
method cannot take, is refused when the method is made. Which layers there are is known when it is attached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

from torch import nn

from paring.core.kinds import stock_class
from paring.core.layers import PlaceKind
from paring.core.short_repr import Shorthand

PlacedKind: TypeAlias = PlaceKind | Literal["heads", "stream"]
PLACE_KINDS: tuple[PlacedKind, ...] = ("units", "inputs", "weights", "heads", "blocks", "stream")


@dataclass(frozen=True)
class Place:
    """A parsed place.

    Attributes:
        kind: "units", "inputs", "weights", "heads", "blocks" or "stream".
        selector: "" for every layer that can take it, else see the module's docstring.
    """

    kind: PlacedKind
    selector: str = ""

    @classmethod
    def parse(cls, text: str | Place, owner: str = "", kinds: Sequence[str] = PLACE_KINDS) -> Place:
        """Read `KIND` or `KIND:SELECTOR`.

        Args:
            text: as the user wrote it.
            owner: whose place it is, for messages: "GMP".
            kinds: the kinds that this owner takes.

        Raises:
            ValueError: it is no text, or the kind is unknown, or none of those.
        """
        if isinstance(text, Place):
            text = str(text)
        said = f"{owner}(at={text!r})" if owner else f"place {text!r}"
        example = f"write for example {_examples(kinds)}"
        if not isinstance(text, str):
            raise ValueError(f"{said}: a place is a text; {example}")
        kind, _, selector = text.partition(":")
        if kind not in PLACE_KINDS:
            close = get_close_matches(kind.strip().lower(), kinds, 1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{said}: {kind!r} is none of {', '.join(kinds)}; {example}{meant}")
        if kind not in kinds:
            raise ValueError(
                f"{said}: {owner} takes places at {' or '.join(map(repr, kinds))}, not {kind!r}; {example}"
            )
        return cls(kind, selector)

    def __str__(self) -> str:
        return f"{self.kind}:{self.selector}" if self.selector else self.kind

    @property
    def parts(self) -> tuple[str, ...]:
        """What the selector is put together from, each with its `!`."""
        return tuple(part for part in self.selector.split("|") if part)

    @property
    def excludes(self) -> bool:
        """Whether it does nothing but leave layers out."""
        return bool(self.parts) and all(part.startswith("!") for part in self.parts)

    def selects(self, name: str, module: nn.Module) -> bool:
        """Whether the selector takes this layer."""
        return self.selects_group({name: module})

    def selects_group(self, layers: Mapping[str, nn.Module]) -> bool:
        """Whether the selector takes layers that go together: any of them, and excludes none."""
        keep = [part for part in self.parts if not part.startswith("!")]
        drop = [part[1:] for part in self.parts if part.startswith("!")]

        def hit(part: str) -> bool:
            return any(names_layer(part, name, module) for name, module in layers.items())

        return (not keep or any(map(hit, keep))) and not any(map(hit, drop))

    def names(self, name: str) -> bool:
        """Whether the selector asks for this layer by its exact name."""
        return bool(self.selector) and name in self.selector.split("|")


@dataclass(frozen=True, repr=False)
class Places(Shorthand):
    """All places of a method; shown as they were written.

    Attributes:
        written: one text for each.
    """

    written: tuple[str, ...]

    @classmethod
    def of(cls, at: At, owner: str = "", kinds: Sequence[str] = PLACE_KINDS) -> Places:
        """One place or several, from a text, a list or tuple of texts, or what this function made before.

        A place that only excludes leaves its layers out of all places of its kind: `["units:!a", "units:!b"]` is `"units:!a|!b"`.

        Args:
            at: as the user gave it.
            owner: whose they are, for messages: "GMP".
            kinds: the kinds that this owner takes.

        Raises:
            ValueError: there is none, or one that cannot be read or taken.
        """
        if isinstance(at, Places):
            given: Sequence[Any] = at.written
        elif isinstance(at, str | Place) or not isinstance(at, Sequence):
            given = (at,)
        else:
            given = at
        if not given:
            raise ValueError(
                f"{owner or 'places'}(at={at!r}): name at least one place; write for example {_examples(kinds)}"
            )
        return cls(tuple(map(str, _joined([Place.parse(place, owner, kinds) for place in given]))))

    @property
    def places(self) -> tuple[Place, ...]:
        """Each of them, parsed."""
        return tuple(map(Place.parse, self.written))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each."""
        return tuple(place.kind for place in self.places)

    @property
    def plain(self) -> str | tuple[str, ...]:
        """As text, or as a tuple of several: what stands in configs, labels and saved states."""
        return self.written[0] if len(self.written) == 1 else self.written

    def __repr__(self) -> str:
        return repr(self.plain)


At: TypeAlias = str | Sequence[str] | Places


def _joined(places: Sequence[Place]) -> list[Place]:
    """The same, with what only excludes in every place of its kind: each alone would let in what another leaves out."""
    out: dict[PlacedKind, list[str]] = {place.kind: [] for place in places}
    for place in places:
        if place.excludes:
            out[place.kind] += place.parts
    found: list[Place] = []
    taken = {place.kind for place in places if not place.excludes}
    for place in places:
        if not place.excludes or place.kind not in taken:
            taken.add(place.kind)
            parts = () if place.excludes else place.parts
            found.append(Place(place.kind, "|".join([*parts, *out[place.kind]])))
    return found


def settle_places(method: Any, *kinds: str) -> None:
    """Turn the field `at` of a frozen method into `Places`; every method with places calls it in `__post_init__`.

    Args:
        method: it was just made.
        kinds: the kinds of places that it takes.

    Raises:
        ValueError: a place cannot be read, or is not one of these kinds.
    """
    object.__setattr__(method, "at", Places.of(method.at, type(method).__name__, kinds))


def names_layer(part: str, name: str, module: nn.Module) -> bool:
    """Whether one part of a selector, without its `!`, means this layer: by its type, its name, or a pattern over names."""
    return part in (stock_class(module).__name__, name) or fnmatchcase(name, part)


def _examples(kinds: Sequence[str]) -> str:
    return f"'{kinds[0]}' or '{kinds[min(1, len(kinds) - 1)]}:Linear'"
