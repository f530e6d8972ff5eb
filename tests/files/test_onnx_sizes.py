from __future__ import annotations

import pytest

from paring.files.onnx_sizes import named_sizes

Shapes = dict[str, tuple[int | str, ...]]


@pytest.mark.parametrize(
    ("shapes", "names"),
    [
        ({"x": ("s1", 3, "s2", "s3")}, {"s1": "batch", "s2": "height", "s3": "width"}),
        ({"x": ("s1", 3, "s2", "s2")}, {"s1": "batch", "s2": "height"}),
        ({"ids": ("a", "b"), "mask": ("a", "b")}, {"a": "batch", "b": "length"}),
        ({"ids": ("a", "b"), "more": ("c", "d")}, {"a": "batch", "b": "length", "c": "more_0", "d": "more_1"}),
        ({"x": ("a", "b", 4, "c")}, {"a": "batch", "b": "x_1", "c": "x_3"}),
        ({"x": ("a", "b", "c", "d")}, {"a": "batch", "b": "x_1", "c": "x_2", "d": "x_3"}),
        ({"x": (2, 3)}, {}),
    ],
)
def test_free_sizes_are_called_what_they_are(shapes: Shapes, names: dict[str, str]) -> None:
    assert named_sizes(shapes) == names
