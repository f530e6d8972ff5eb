"""What a network is called with: the example that a user gives, as positional and keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Inputs:
    """Arguments of a network; tensors may lie in nested tuples, lists and dictionaries.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example: Example) -> Inputs:
        """The arguments that an example stands for.

        Args:
            example: one argument (a tensor, or a list of them), a tuple of positional arguments, or a mapping of keyword
                arguments. A dictionary that is itself the argument is `({"x": x},)`.

        Raises:
            TypeError: it is something else, such as an array of NumPy.
        """
        if isinstance(example, Inputs):
            return example
        if isinstance(example, tuple):
            return cls(example)
        if not isinstance(example, Mapping):
            if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(example)):
                raise TypeError(_refusal(example))
            return cls((example,))
        if odd := [name for name in example if not isinstance(name, str)]:
            raise TypeError(
                f"a mapping as the example holds keyword arguments by name, but {odd[0]!r} is no name; a dictionary that is "
                "itself the argument is ({...},)"
            )
        return cls((), dict(example))

    def call(self, net: Callable[..., Any]) -> Any:
        """What `net` returns for these arguments; it gets copies of the tensors, as some networks write into them."""
        copied = self.map(Tensor.clone)
        return net(*copied.args, **copied.kwargs)

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same arguments with every tensor changed."""
        args, kwargs = pytree.tree_map_only(Tensor, change, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs)

    def flat(self) -> tuple[list[Any], pytree.TreeSpec]:
        """Tensors and whatever else the arguments hold, in order, and how positional and keyword arguments pack them."""
        return pytree.tree_flatten((self.args, dict(self.kwargs)))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        return [leaf for leaf in self.flat()[0] if isinstance(leaf, Tensor)]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of all tensors, in order."""
        return [tuple(tensor.shape) for tensor in self.tensors]

    @property
    def batch(self) -> int | None:
        """The first dimension that all tensors share; None if they do not share one."""
        sizes = {shape[0] if shape else 0 for shape in self.shapes}
        return (sizes.pop() or None) if len(sizes) == 1 else None

    def rows(self, picked: Tensor) -> Inputs:
        """These entries of the first dimension of every tensor, detached. picked: (n,) int64."""
        return self.map(lambda tensor: tensor.detach()[picked.to(tensor.device)])

    def cycled(self, batch: int) -> Inputs:
        """So many examples, by leaving some out or repeating them from the first; as they are where no batch is shared."""
        size = self.batch
        return self if size is None else self.rows(torch.arange(batch) % size)

    def __str__(self) -> str:
        """Shapes of the tensors, as messages show them."""
        return ", ".join(map(str, self.shapes)) or "no tensor"


Example: TypeAlias = Tensor | list[Any] | tuple[Any, ...] | Mapping[str, Any] | Inputs


def _refusal(example: object) -> str:
    kind = type(example)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]}.{kind.__name__}"
    hint = "; torch.from_numpy(...) makes a tensor of an array" if name == "numpy.ndarray" else ""
    return (
        f"an example of what the network takes is a tensor, a tuple of positional arguments or a mapping of keyword arguments, "
        f"not {'None' if example is None else f'a {name}'}{hint}"
    )
