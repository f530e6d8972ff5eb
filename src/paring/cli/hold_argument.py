"""The end of a training with gates as the command line writes it: `0.4`, or `last=0.4,rewind=1ep,drop=0.5`.

Layers have drops of their own as `last=0.4,drop:fc1=0.25,drop:fc2=0.5`; `none` is what the method takes by itself.
"""

from __future__ import annotations

from typing import Any

from paring.methods import Hold
from paring.methods.by_layer import named

_NONE = "none"


def parse_hold(text: str) -> Hold:
    """Read a fraction, or names and values.

    Raises:
        ValueError: it is neither.
    """
    if text == _NONE:
        return Hold()
    if "=" not in text:
        return Hold(_number(text, text))
    last, rewind, drops = None, None, {}
    seen = set()
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or name in seen:
            raise ValueError(f"hold {text!r}: {part!r} stands there twice, or is no name=value")
        seen.add(name)
        if name == "last":
            last = _number(text, value)
        elif name == "rewind":
            rewind = value
        elif name == "drop" or name.startswith("drop:"):
            drops[name.removeprefix("drop").removeprefix(":")] = _number(text, value)
        else:
            raise ValueError(f"hold {text!r}: a hold has last, rewind, drop and drop:LAYER, not {name}")
    if "" in drops and len(drops) > 1:
        raise ValueError(f"hold {text!r}: give one drop for all layers, or one for each")
    return Hold(last, rewind, drops[""] if "" in drops else tuple(drops.items()) or 0.0)


def show_hold(value: Any) -> list[str]:
    """As it is written."""
    hold = Hold.of(value)
    if hold == Hold(hold.last):
        return [_NONE if hold.last is None else str(hold.last)]
    told = {"last": hold.last, "rewind": hold.rewind}
    told |= {f"drop:{layer}" if layer else "drop": number for layer, number in named(hold.drop) if layer or number}
    return [",".join(f"{name}={number}" for name, number in told.items() if number is not None)]


def _number(text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"hold {text!r}: {value!r} is not a number; examples: 0.4, 'last=0.4,rewind=1ep'") from None
