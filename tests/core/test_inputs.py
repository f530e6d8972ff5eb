"""What an example stands for."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paring.core import Inputs

X, S = torch.arange(6.0).view(3, 2), torch.ones(3, 1)


@pytest.mark.parametrize(
    ("example", "args", "kwargs"),
    [
        (X, (X,), {}),
        ((X, S), (X, S), {}),
        (({"x": X},), ({"x": X},), {}),
        ([X], ([X],), {}),
        ({"x": X, "scale": S}, (), {"x": X, "scale": S}),
        (UserDict(x=X), (), {"x": X}),
        (Inputs((X,), {"scale": S}), (X,), {"scale": S}),
        ((), (), {}),
    ],
)
def test_kinds(example: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    found = Inputs.of(example)
    assert len(found.args) == len(args)
    assert all(a is b or type(a) is type(b) for a, b in zip(found.args, args, strict=True))
    assert found.kwargs.keys() == kwargs.keys()
    assert all(found.kwargs[name] is kwargs[name] for name in kwargs)


@pytest.mark.parametrize("example", [None, "x", 3, np.zeros(3), iter([X]), ["x"], object()])
def test_other_kinds_are_named(example: Any) -> None:
    name = "None" if example is None else type(example).__name__
    with pytest.raises(TypeError, match=f"a tensor, a tuple of positional arguments or a mapping .*not .*{name}"):
        Inputs.of(example)


def test_a_mapping_has_names() -> None:
    with pytest.raises(TypeError, match=r"0 is no name; a dictionary that is itself the argument is \(\{...\},\)"):
        Inputs.of({0: X})  # type: ignore[dict-item]


def test_a_call_gets_copies() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor, *, scale: list[Tensor]) -> Tensor:
            x += 1
            scale[0] *= 2
            return x * scale[0]

    x, scale = torch.zeros(2), torch.ones(2)
    assert Inputs((x,), {"scale": [scale]}).call(Writes()).tolist() == [2, 2]
    assert x.tolist() == [0, 0]
    assert scale.tolist() == [1, 1]


def test_rows() -> None:
    inputs = Inputs((X, 3), {"more": {"s": S, "flag": True}})
    assert inputs.batch == 3
    assert str(inputs) == "(3, 2), (3, 1)"
    taken = inputs.cycled(5)
    assert taken.args[0][:, 0].tolist() == [0, 2, 4, 0, 2]
    assert taken.args[1] == 3
    assert taken.kwargs["more"]["s"].shape == (5, 1)
    assert taken.kwargs["more"]["flag"] is True
    other = Inputs((X, torch.zeros(2)))
    assert other.batch is None
    assert other.cycled(2) is other
    assert Inputs((torch.tensor(1.0),)).batch is None
