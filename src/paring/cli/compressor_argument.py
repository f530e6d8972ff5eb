"""`--compressor NAME:field=value,...`: a compressor in words.

Not here: `Hashed`, whose network keeps layers that hash, so that its file loads into no network of the given architecture.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from paring import compression as compressors
from paring.cli.command import CommandError
from paring.cli.meant import meant
from paring.compression import Compressor

COMPRESSORS: dict[str, type[Compressor]] = {
    "adaptive_precision": compressors.AdaptivePrecision,
    "calibrated_rounding": compressors.CalibratedRounding,
    "codebooks": compressors.Codebooks,
    "deep_compression": compressors.DeepCompression,
    "entropy_rounding": compressors.EntropyRounding,
    "grid_rounding": compressors.GridRounding,
    "kmeans": compressors.KMeans,
    "smallest": compressors.Smallest,
    "soft_sharing": compressors.SoftSharing,
    "uniform": compressors.Uniform,
}


def parse_compressor(text: str) -> Compressor:
    """A compressor by name, with `field=value` pairs after a colon; values of a list are joined by +.

    Raises:
        CommandError: unknown name or field, or a value that makes no sense.
    """
    name, _, rest = text.partition(":")
    if name not in COMPRESSORS:
        raise CommandError(
            f"--compressor {name}: there is no such compressor; {meant(name, COMPRESSORS)}choose one of {', '.join(COMPRESSORS)}"
        )
    kind = COMPRESSORS[name]
    known = {f.name: str(f.type) for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in known:
            raise CommandError(
                f"--compressor {text}: {name} has {', '.join(known)}, written as {name}:{next(iter(known))}=…"
            )
        values[key] = _value(text, known[key], value)
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise CommandError(f"--compressor {text}: {error}") from error


def _value(text: str, kind: str, value: str) -> Any:
    if kind.startswith("tuple["):
        inner = kind.removeprefix("tuple[").partition(",")[0]
        return tuple(_value(text, inner, one) for one in value.split("+"))
    try:
        if kind == "int":
            return int(value)
        if kind.startswith("float"):
            return float(value)
    except ValueError:
        raise CommandError(f"--compressor {text}: {value!r} is no {kind}") from None
    if kind == "bool":
        if value not in ("true", "false"):
            raise CommandError(f"--compressor {text}: {value!r} is neither true nor false")
        return value == "true"
    return value
