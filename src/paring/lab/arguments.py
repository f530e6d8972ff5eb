"""Command-line forms of the values that are not plain numbers, and the tyro call around them.

A price is written `1e-6`, `rate=1e-6,of=macs,conv1=1e-4` or `budget:macs=0.25,params=0.1`; a relaxation `hard_concrete`
or `concrete:beta=0.5`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from paring import relax
from paring.core import Method
from paring.methods import L0, Budget, Dense, Price

T = TypeVar("T")

METHODS: dict[str, type[Method]] = {"dense": Dense, "l0": L0}
RELAXATIONS: dict[str, type[relax.Relaxation]] = {
    "hard_concrete": relax.HardConcrete,
    "concrete": relax.Concrete,
    "rectified_gaussian": relax.RectifiedGaussian,
    "rectified_logistic": relax.RectifiedLogistic,
    "bernoulli": relax.StraightThroughBernoulli,
}


def parse_price(text: str) -> Price | Budget:
    """Read a price or a budget.

    Raises:
        ValueError: the text is neither.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind != "budget":
        raise ValueError(f"price {text!r}: write a number, 'rate=...,of=macs' or 'budget:macs=0.25'")
    if colon:
        pairs = _numbers(text, rest)
        unknown = set(pairs) - {"params", "macs", "ascent"}
        if unknown:
            raise ValueError(f"price {text!r}: a budget has params, macs and ascent, not {', '.join(sorted(unknown))}")
        return Budget(**pairs)
    try:
        return Price(float(text))
    except ValueError:
        if "=" not in text:
            raise ValueError(
                f"price {text!r}: not a number that is at least 0; examples: 1e-6, 'rate=1e-6,of=macs', budget:macs=0.25"
            ) from None
    pairs_given = [_pair(text, part) for part in text.split(",")]
    words = dict(pairs_given)
    if len(words) < len(pairs_given):
        raise ValueError(f"price {text!r}: a name stands there twice")
    of = words.pop("of", "parameters")
    pairs = {name: _number(text, value) for name, value in words.items()}
    return Price(pairs.pop("rate", 0.0), cast(Any, of), tuple(pairs.items()))


def parse_relaxation(text: str) -> relax.Relaxation:
    """Read a relaxation: a name, and numbers after a colon.

    Raises:
        ValueError: unknown name or field.
    """
    name, _, rest = text.partition(":")
    if name not in RELAXATIONS:
        raise ValueError(f"gate {text!r}: choose one of {', '.join(RELAXATIONS)}")
    kind = RELAXATIONS[name]
    values: dict[str, Any] = {}
    known = {f.name for f in dataclasses.fields(cast(Any, kind))} - {"clamp"}
    for part in filter(None, rest.split(",")):
        key, value = _pair(text, part)
        if key not in known:
            raise ValueError(f"gate {text!r}: {name} has {', '.join(sorted(known)) or 'no numbers'}, not {key}")
        values[key] = value if key == "test" else _number(text, value)
    return kind(**values)


def _pair(text: str, part: str) -> tuple[str, str]:
    key, equals, value = part.partition("=")
    if not equals or not key:
        raise ValueError(f"{text!r}: expected name=value, got {part!r}")
    return key.strip(), value.strip()


def _number(text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{text!r}: {value!r} is not a number") from None


def _numbers(text: str, rest: str) -> dict[str, float]:
    return {key: _number(text, value) for key, value in (_pair(text, part) for part in rest.split(","))}


def _show_price(value: Any) -> list[str]:
    if isinstance(value, Budget):
        return ["budget:" + ",".join(f"{n}={v}" for n, v in vars(value).items() if v is not None)]
    if isinstance(value, Price):
        if value.of == "parameters" and not value.layers:
            return [str(value.rate)]
        return [",".join([f"rate={value.rate}", f"of={value.of}", *(f"{n}={v}" for n, v in value.layers)])]
    return [str(value)]


def _show_relaxation(value: Any) -> list[str]:
    name = next(name for name, kind in RELAXATIONS.items() if type(value) is kind)
    fields = [f for f in dataclasses.fields(value) if getattr(value, f.name) != f.default and f.name != "clamp"]
    return [name + (":" if fields else "") + ",".join(f"{f.name}={getattr(value, f.name)}" for f in fields)]


def first_as(flag: str, words: Sequence[str]) -> list[str]:
    """The words with `flag` in front when the first one is no option: `table NAME` is `table --name NAME`."""
    return [flag, *words] if words and not words[0].startswith("-") else list(words)


def read(kind: type[T], words: Sequence[str], *, prog: str, description: str) -> T:
    """Read a frozen dataclass from command-line words; `--help` and refusals are tyro's.

    Raises:
        ImportError: the extra `cli` is not installed.
        SystemExit: the words do not fit (status 2), or help was asked for (status 0).
    """
    try:
        import tyro
    except ImportError as error:
        raise ImportError("the command line needs the extra 'cli': pip install 'paring[cli]'") from error
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _rule(info: Any) -> Any:
        forms: dict[Any, tuple[str, Callable[[str], Any], Callable[[Any], list[str]], Any]] = {
            float | Price | Budget: ("RATE|budget:NAME=F", parse_price, _show_price, (int, float, Price, Budget)),
            relax.Relaxation: ("NAME[:FIELD=X]", parse_relaxation, _show_relaxation, relax.Relaxation),
        }
        form = forms.get(info.type)
        if form is None:
            return None
        metavar, parse, show, types = form
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=metavar,
            instance_from_str=lambda args: parse(args[0]),
            is_instance=lambda value: isinstance(value, types),
            str_from_instance=show,
        )

    with registry:
        return tyro.cli(kind, args=list(words), prog=prog, description=description, config=(tyro.conf.OmitArgPrefixes,))
