"""What a file says of its network, checked before anything is believed or any memory taken.

`load` and `unpack` read the same manifest (see `paring.files.file`) and check it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from paring.core.file_error import FileError
from paring.core.kinds import kind_of, sized
from paring.core.nested import TYPES, Shape, allowed, as_inputs, understood
from paring.core.recurrent import gates_of
from paring.core.written_sizes import is_number, is_size

VERSION, GRAPH_VERSION = 1, 4
_KEYS = {"version", "ties", "modules", "units", "sizes", "numbers", "graph", "tensors"}
_MOST_LEVELS = 1 << 16
_MOST = 1 << 31
_MOST_FREE = 64  # sizes of inputs
Held = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name -> dtype and sizes of every tensor that a file really holds."""


def checked(manifest: object, held: Held, path: object) -> dict[str, Any]:
    """The manifest without `tensors`, if it makes sense with the tensors that are there.

    Args:
        manifest: what JSON gave.
        held: the tensors that the file really holds.
        path: for messages.

    Raises:
        FileError: it does not make sense, or is of another format version.
    """
    if not isinstance(manifest, dict):
        raise FileError(f"{path} is damaged: its manifest is no list of names and values. {_AGAIN}")
    version = manifest.get("version")
    if type(version) is not int or version not in (VERSION, GRAPH_VERSION):
        raise FileError(
            f"{path} has format version {version}, this paring reads {VERSION} and {GRAPH_VERSION}. "
            "Use a matching paring, or save it again from the network."
        )
    if problem := _problem(manifest, held):
        raise FileError(f"{path} is damaged: {problem}. {_AGAIN}")
    found = {key: value for key, value in manifest.items() if key in _KEYS - {"tensors"}}
    if "graph" in found:
        try:
            _check_example(found["graph"]["example"], held)
        except ValueError as error:
            raise FileError(f"{path} is damaged: {error}. {_AGAIN}") from error
    return found


_AGAIN = "Save it again, or fetch it again."


def _problem(manifest: dict[str, Any], held: Held) -> str:
    """What makes no sense in a manifest; nothing if all does."""
    if odd := sorted(str(key) for key in manifest.keys() - _KEYS):
        return f"its manifest has an unknown part {odd[0]!r}"
    ties, modules, units = manifest.get("ties"), manifest.get("modules"), manifest.get("units", {})
    if not isinstance(ties, dict) or not all(type(owner) is str for owner in ties.values()):
        return "its ties make no sense"
    if any(owner not in held or alias in held for alias, owner in ties.items()):
        return "its ties name tensors that are not there"
    if not isinstance(modules, dict) or not all(type(kind) is str for kind in modules.values()):
        return "its modules make no sense"
    if odd := sorted(kind for kind in modules.values() if kind != "Identity" and not sized(kind)):
        return (
            f"it has a layer of the kind {odd[0]!r}, which is not known here (a class of your own goes through paring.core.register "
            "before a file of it is read)"
        )
    if not isinstance(units, dict) or not all(map(_is_unit, units.values())):
        return "its units make no sense"
    sizes = manifest.get("sizes", {})
    if not isinstance(sizes, dict) or not all(is_size(size) and size <= _MOST for size in sizes.values()):
        return "its sizes make no sense"
    numbers = manifest.get("numbers", {})
    if not isinstance(numbers, dict) or not all(map(is_number, numbers.values())):
        return "its numbers make no sense"
    if "tensors" in manifest and manifest["tensors"] != {name: [dtype, list(s)] for name, (dtype, s) in held.items()}:
        return "it holds other tensors than it says"
    if ("graph" in manifest) != (manifest["version"] == GRAPH_VERSION):
        return "its format version and its graph do not fit"
    return "its graph makes no sense" if "graph" in manifest and not _is_graph(manifest["graph"]) else ""


def _is_unit(spec: object) -> bool:
    """Whether this is a name and positive numbers."""
    return (
        isinstance(spec, list)
        and len(spec) > 0
        and type(spec[0]) is str
        and all(type(n) is int and 0 < n <= _MOST_LEVELS for n in spec[1:])
    )


def _is_graph(graph: object) -> bool:
    """Whether this says which units go, and has something for an example."""
    if (
        not isinstance(graph, dict)
        or graph.keys() != {"gone", "example", "free"}
        or not isinstance(graph["gone"], dict)
    ):
        return False
    free = graph["free"]
    if (
        not isinstance(free, list)
        or len(free) > _MOST_FREE
        or not all(is_size(size) and size <= _MOST for size in free)
    ):
        return False
    return all(map(_is_gone, graph["gone"].values()))


def _is_gone(given: object) -> bool:
    """Whether this is a number of units and rising places among them."""
    if not isinstance(given, list) or len(given) != 2 or type(given[0]) is not int or type(given[1]) is not list:
        return False
    places = given[1]
    return all(type(n) is int for n in places) and all(
        a < b for a, b in zip([-1, *places], [*places, given[0]], strict=True)
    )


def _check_example(given: object, held: Held) -> None:
    """Raises `ValueError` when this describes no arguments of a network, or too large ones."""
    found = understood(given)
    as_inputs(found)
    leaves = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Shape)]
    needed, most = sum(leaf.nbytes for leaf in leaves), allowed(nbytes(held))
    if needed > most:
        raise ValueError(f"its example would take {needed:,} bytes, more than the {most:,} allowed")


def layer_name(module: nn.Module) -> str:
    """What a file calls this layer: the class of the table that it is of or derives from; "" for what has no sizes.

    An `nn.Identity` has its name, too: a norm may have been there.
    """
    kind = kind_of(module)
    if type(module) is nn.Identity or gates_of(module):
        return type(module).__name__
    return kind.layer.__name__ if kind is not None and kind.sizes else ""


def nbytes(held: Held) -> int:
    """Bytes of all tensors together."""
    return sum(Shape(sizes, TYPES[dtype]).nbytes for dtype, sizes in held.values() if dtype in TYPES)
