"""Names of the free sizes in an ONNX file: the exporter calls them `s31`, a user looks for `batch` and `length`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any


def named_sizes(shapes: Mapping[str, tuple[int | str, ...]]) -> dict[str, str]:
    """What the free sizes of these inputs should be called, by what they are called now.

    The first dimension is the `batch`; one other free one is the `length`; two beside each other are `height` and `width`; what
    is none of these, or would take a name twice, is called by its input and its dimension.
    """
    names: dict[str, str] = {}
    for key, shape in shapes.items():
        free = [dim for dim, size in enumerate(shape) if dim and isinstance(size, str)]
        words = {1: ("length",), 2: ("height", "width")}.get(len(free), ())
        if len(free) == 2 and free[1] - free[0] > 1:
            words = ()
        meant = dict(zip(free, words, strict=False)) | {0: "batch"}
        for dim, size in enumerate(shape):
            if isinstance(size, str) and size not in names:
                name = meant.get(dim, f"{key}_{dim}")
                names[size] = f"{key}_{dim}" if name in names.values() else name
    return names


def rename_sizes(model: Any) -> None:
    """Give the free sizes of an `onnx.ModelProto` these names, wherever they stand, in products and sums too."""
    given = {
        one.name: tuple(dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim)
        for one in model.graph.input
    }
    names = named_sizes(given)
    for infos in (model.graph.input, model.graph.output, model.graph.value_info):
        for dim in (dim for one in infos for dim in _dims(one)):
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dim.dim_param)


def _dims(info: Any) -> Iterator[Any]:
    if info.type.HasField("tensor_type"):
        yield from info.type.tensor_type.shape.dim
