"""Code that a file may name but must not reach: a module that says when it is imported, a function that says when it is called."""

from __future__ import annotations

import copy
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = "paring_planted"
PICKLE = f"c{NAME}\nplanted\n(tR.".encode()
"""A pickle that calls the planted function."""

touched: list[str] = []
"""What happened since the list was emptied."""

_SOURCE = """
from paring.testing.fuzz.plant import touched

touched.append("imported")


def planted(*args, **options):
    touched.append("called")
    return {}
"""


@contextmanager
def planted() -> Iterator[None]:
    """Meanwhile `import paring_planted` works, and is noticed in `touched`."""
    with tempfile.TemporaryDirectory(prefix="paring-planted-") as folder:
        (Path(folder) / f"{NAME}.py").write_text(_SOURCE, encoding="utf-8")
        sys.path.insert(0, folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
            sys.modules.pop(NAME, None)


def happened() -> list[str]:
    """What was touched since the last call."""
    found = list(touched)
    touched.clear()
    if found:
        sys.modules.pop(NAME, None)
    return found


def _treespec(kind: str, context: object) -> str:
    """A tuple of one leaf of this kind, as torch's pytree writes it."""
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    inner = {"type": kind, "context": json.dumps(context), "children_spec": [leaf]}
    return json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": [inner]}])


FACTORY = {"default_factory_module": NAME, "default_factory_name": "planted", "dict_context": ["x"]}
ENUM = {"__enum__": True, "fqn": f"{NAME}:planted", "name": "x"}
VALUES: tuple[Any, ...] = (
    NAME,
    f"{NAME}:planted",
    f"{NAME}.planted",
    f"{NAME}.planted()",
    f"__import__('{NAME}').planted()",
    FACTORY,
    ENUM,
    _treespec("collections.defaultdict", FACTORY),
    _treespec("builtins.dict", [ENUM]),
    {"__class__": f"{NAME}.planted", "_target_": f"{NAME}.planted"},
    {"py/reduce": [{"py/function": f"{NAME}.planted"}, {"py/tuple": []}]},
    f"!!python/object/apply:{NAME}.planted []",
    PICKLE.decode(),
)
"""Ways in which texts have made readers run code."""


def any_value(chance: random.Random) -> Any:
    """A copy of one of `VALUES`."""
    return copy.deepcopy(chance.choice(VALUES))
