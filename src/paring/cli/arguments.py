"""Command-line forms of the values that are not plain numbers, and the tyro call around them.

A price is written `1e-6`, `rate=1e-6,of=macs,conv1=1e-4` or `budget:macs=0.25,params=0.1`; a relaxation `hard_concrete`
or `concrete:beta=0.5`, an allocation `erdos_renyi`, a structure `nm:n=2,m=4`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from paring import hard, select
from paring.cli.hold_argument import parse_hold, show_hold
from paring.cli.meant import meant
from paring.core import At, Places
from paring.gates import relax
from paring.methods import Budget, Hold, Price
from paring.methods.by_layer import ByLayer, named, pairs_of

T = TypeVar("T")

ALLOCATIONS: dict[str, type[select.Allocation]] = {
    "global": select.Global,
    "uniform": select.Uniform,
    "erdos_renyi": select.ErdosRenyi,
}
STRUCTURES: dict[str, type[select.Structure]] = {
    "weights": select.Weights,
    "units": select.Units,
    "blocks": select.Blocks,
    "nm": select.NM,
}
GRADIENT_RULES: dict[str, type[hard.GradientRule]] = {
    "ste": hard.STE,
    "sste": hard.SaturatedSTE,
    "approx_sign": hard.ApproxSign,
    "error_decay": hard.ErrorDecay,
    "hinge": hard.Hinge,
    "saturating_hinge": hard.SaturatingHinge,
    "soft_hinge": hard.SoftHinge,
    "log_loss": hard.LogLoss,
}
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
        unknown = set(pairs) - {"params", "macs", "ascent", "multiple_of"}
        if unknown:
            raise ValueError(
                f"price {text!r}: a budget has params, macs, ascent and multiple_of, not {', '.join(sorted(unknown))}"
            )
        return Budget(**pairs)  # type: ignore[arg-type]  # it refuses a multiple that is not whole
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
    of = words.pop("of", "params")
    pairs = {name: _number(text, value) for name, value in words.items()}
    return Price(pairs.pop("rate", 0.0), cast(Any, of), tuple(pairs.items()))


def parse_by_layer(words: Sequence[str]) -> ByLayer:
    """Read a number for all layers, or layers and their numbers in turn: `0.5`, or `fc1 0.8 conv* 0.5`.

    Raises:
        ValueError: it is neither.
    """
    told = " ".join(words)
    if len(words) == 1:
        return _number(told, words[0])
    if not words or len(words) % 2:
        raise ValueError(f"{told!r}: write a number, or each layer with its number: fc1 0.8 conv* 0.5")
    return tuple((name, _number(told, value)) for name, value in zip(words[::2], words[1::2], strict=True))


def parse_relaxation(text: str) -> relax.Relaxation:
    """Read a relaxation: a name, and numbers after a colon.

    Raises:
        ValueError: unknown name or field.
    """
    return cast(relax.Relaxation, _parse_named("gate", RELAXATIONS, text))


def parse_allocation(text: str) -> select.Allocation:
    """Read an allocation: `global`, `uniform:first_dense=true`, `erdos_renyi`, or `given:conv1=0.5,fc*=0.1`.

    Raises:
        ValueError: unknown name or field.
    """
    name, _, rest = text.partition(":")
    if name == "given":
        return select.Given(tuple(_numbers(text, rest).items()))
    return cast(select.Allocation, _parse_named("allocation", ALLOCATIONS, text))


def parse_rule(text: str) -> hard.GradientRule:
    """Read a gradient rule: `ste`, `sste:window=1.5`, `soft_hinge`, `soft_hinge:weighted=false`.

    Raises:
        ValueError: unknown name or field.
    """
    return cast(hard.GradientRule, _parse_named("rule", GRADIENT_RULES, text))


def parse_structure(text: str) -> select.Structure:
    """Read a structure: `weights`, `units`, `blocks:outputs=4,inputs=4`, `nm:n=2,m=4`.

    Raises:
        ValueError: unknown name or field.
    """
    return cast(select.Structure, _parse_named("structure", STRUCTURES, text))


def _parse_named(what: str, table: Mapping[str, type[Any]], text: str) -> Any:
    """A dataclass by its name, with `field=value` pairs after a colon."""
    name, _, rest = text.partition(":")
    if name not in table:
        raise ValueError(f"{what} {text!r}: {meant(name, table)}choose one of {', '.join(table)}")
    known = {f.name: f for f in dataclasses.fields(table[name]) if f.name != "clamp"}
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, value = _pair(text, part)
        if key not in known:
            raise ValueError(
                f"{what} {text!r}: {meant(key, known)}{name} has {', '.join(sorted(known)) or 'no numbers'}, not {key}"
            )
        values[key] = _value(text, str(known[key].type), value)
    return table[name](**values)


def _value(text: str, kind: str, value: str) -> Any:
    if kind == "float":
        return _number(text, value)
    if kind == "int":
        number = _number(text, value)
        if not number.is_integer():
            raise ValueError(f"{text!r}: {value!r} is not a whole number")
        return int(number)
    if kind == "bool":
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{text!r}: {value!r} is neither true nor false")
        return value.lower() == "true"
    return value


def _show_named(table: Mapping[str, type[Any]]) -> Callable[[Any], list[str]]:
    def show(value: Any) -> list[str]:
        if isinstance(value, select.Given):
            return ["given:" + ",".join(f"{name}={density}" for name, density in value.densities)]
        name = next(name for name, kind in table.items() if type(value) is kind)
        fields = [f for f in dataclasses.fields(value) if getattr(value, f.name) != f.default and f.name != "clamp"]
        return [name + (":" if fields else "") + ",".join(f"{f.name}={getattr(value, f.name)}" for f in fields)]

    return show


def _words(table: Mapping[str, type[Any]]) -> str:
    """The names of a table and the fields of each, as help shows them: "weights|units|blocks[:outputs=X,inputs=X]"."""
    fields = {name: [f.name for f in dataclasses.fields(kind) if f.name != "clamp"] for name, kind in table.items()}
    return "|".join(
        name + ("[:" + ",".join(f"{one}=X" for one in own) + "]" if own else "") for name, own in fields.items()
    )


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
        if value.of == "params" and not value.layers:
            return [str(value.rate)]
        return [",".join([f"rate={value.rate}", f"of={value.of}", *(f"{n}={v}" for n, v in pairs_of(value.layers))])]
    return [str(value)]


def _show_relaxation(value: Any) -> list[str]:
    return _show_named(RELAXATIONS)(value)


def _many(kind: Any, spec: Callable[..., Any]) -> Any:
    """How a tuple of any number of plain values or words is read, an empty one shown as "none"; None for other types."""
    entry: Any = get_args(kind)[0] if get_origin(kind) is tuple and get_args(kind)[1:] == (...,) else None
    words = get_args(entry) if get_origin(entry) is Literal else None
    if words is None and entry not in (float, int, str):
        return None
    name = f"{{{','.join(words)}}}" if words else entry.__name__.upper()
    made: Callable[[str], Any] = str if words else entry
    return spec(
        nargs="*",
        metavar=f"[{name} ...]",
        instance_from_str=lambda args: tuple(map(made, args)),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: list(map(str, value)) or ["none"],
        choices=words,
    )


def _placed(kind: type[T], name: str) -> type[T]:
    """The same dataclass, with this field read from its place instead of after its name."""
    import tyro

    positional: Any = tyro.conf.Positional
    hint = get_type_hints(kind)[name]
    word = positional[hint]
    if hint is str:
        word = Annotated[word, tyro.conf.arg(metavar=name.upper())]
    return dataclasses.make_dataclass(
        kind.__name__, [(name, word)], bases=(kind,), frozen=True, namespace={"__doc__": kind.__doc__}
    )


def read(kind: type[T], words: Sequence[str], *, prog: str, description: str, first: str = "") -> T:
    """Read a frozen dataclass from command-line words; `--help` and refusals are tyro's.

    first: a field without a default that needs no name in front: `table NAME` is `table --name NAME`.

    Raises:
        ImportError: the extra `cli` is not installed.
        SystemExit: the words do not fit (status 2), or help was asked for (status 0).
    """
    try:
        import tyro
    except ImportError as error:
        raise ImportError("the command line needs the extra 'cli': pip install 'paring[cli]'") from error
    if first and not any(word.partition("=")[0] == f"--{first}" for word in words):
        kind = _placed(kind, first)
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _rule(info: Any) -> Any:
        forms: dict[Any, tuple[str, Callable[[str], Any], Callable[[Any], list[str]], Any]] = {
            float | Price | Budget: ("RATE|budget:NAME=F", parse_price, _show_price, (int, float, Price, Budget)),
            float | Hold | None: (
                "F|last=F,rewind=STEPS,drop=F",
                parse_hold,
                show_hold,
                (int, float, Hold, type(None)),
            ),
            relax.Relaxation: (_words(RELAXATIONS), parse_relaxation, _show_relaxation, relax.Relaxation),
            select.Allocation: (
                _words(ALLOCATIONS) + "|given:LAYER=F",
                parse_allocation,
                _show_named(ALLOCATIONS),
                select.Allocation,
            ),
            hard.GradientRule: (_words(GRADIENT_RULES), parse_rule, _show_named(GRADIENT_RULES), hard.GradientRule),
            select.Structure: (_words(STRUCTURES), parse_structure, _show_named(STRUCTURES), select.Structure),
        }
        if info.type == At:
            return tyro.constructors.PrimitiveConstructorSpec(
                nargs="*",
                metavar="KIND[:LAYERS] ...",
                instance_from_str=lambda args: Places.of(args),
                is_instance=lambda value: isinstance(value, str | list | tuple | Places),
                str_from_instance=lambda value: list(Places.of(value).written),
            )
        if info.type == ByLayer:
            return tyro.constructors.PrimitiveConstructorSpec(
                nargs="*",
                metavar="NUMBER|LAYER NUMBER ...",
                instance_from_str=parse_by_layer,
                is_instance=lambda value: isinstance(value, int | float | tuple | Mapping),
                str_from_instance=lambda value: [str(word) for pair in named(value) for word in pair if word != ""],
            )
        if (many := _many(info.type, tyro.constructors.PrimitiveConstructorSpec)) is not None:
            return many
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
