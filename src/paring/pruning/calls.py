"""What a network is called with, and what it answers: noted while the user's loss runs it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paring.analysis.capture import untouched_random
from paring.core import Inputs

_EXAMPLES = 2


class Calls:
    """The first call of a network since `clear`: its arguments and its answer.

    Attributes:
        inputs: the arguments; None before.
        answer: what it returned.
        count: calls since `clear`.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget."""
        self.inputs: Inputs | None = None
        self.answer: Any = None
        self.count = 0

    @contextmanager
    def of(self, net: nn.Module) -> Iterator[Calls]:
        """While this is on, calls of `net` are noted."""

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> None:
            self.count += 1
            if self.count == 1:
                self.inputs, self.answer = Inputs(args, kwargs), answer

        handle = net.register_forward_hook(note, with_kwargs=True)
        try:
            yield self
        finally:
            handle.remove()
            self.clear()


def floats(answer: Any) -> list[Tensor]:
    """The tensors of an answer that are compared with a teacher's: logits where it has some by name, else all of floats."""
    if isinstance(answer, Mapping) and isinstance(answer.get("logits"), Tensor):
        return [answer["logits"]]
    leaves = pytree.tree_leaves(dict(answer) if isinstance(answer, Mapping) else answer)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0]


def example_of(net: nn.Module, inputs: Inputs) -> Inputs:
    """A few examples of these arguments, to capture the network with.

    Labels of mappings are left out where it runs without them; some make their decoder's input of them.
    """
    bare = Inputs(inputs.args, {name: value for name, value in inputs.kwargs.items() if name != "labels"})
    return few(inputs if len(bare.kwargs) < len(inputs.kwargs) and not runs(net, bare) else bare)


def few(inputs: Inputs) -> Inputs:
    """Some examples of a batch."""
    size = inputs.batch
    return inputs.map(Tensor.detach) if size is None else inputs.rows(torch.arange(min(size, _EXAMPLES)))


@torch.no_grad()
def refuse_lost_training(net: nn.Module, small: nn.Module, inputs: Inputs) -> None:
    """Refuse a network that does not run in train mode any more, as where a head that is there in train mode alone reads what was cut.

    Args:
        net: the network as given.
        small: the one that was cut.
        inputs: what both take.

    Raises:
        ValueError: names a part that runs in train mode alone.
    """
    if runs(small, inputs, train=True) or not runs(net, inputs, train=True):
        return
    alone = train_mode_alone(net, inputs)
    part = f"{alone[0]!r} runs there, and not in eval mode, and" if alone else "something in its forward"
    raise ValueError(
        f"the small network does not run in train mode: {part} reads units that were cut. Switch it off for the training after "
        'the cut, or keep what it reads: at="units:!NAME", with the layer in front of it'
    )


@torch.no_grad()
def train_mode_alone(net: nn.Module, inputs: Inputs) -> list[str]:
    """Modules with parameters that are called in train mode and not in eval mode, by name."""
    called = []
    for train in (False, True):
        copied, names = copy.deepcopy(net).train(train), set[str]()
        for name, module in copied.named_modules():
            module.register_forward_hook(lambda *_, name=name, names=names: names.add(name))
        with untouched_random():
            inputs.call(copied)
        called.append(names)
    held = {name for name, module in net.named_modules() if any(True for _ in module.parameters())}
    return sorted((called[1] - called[0]) & held)


@torch.no_grad()
def runs(net: nn.Module, inputs: Inputs, train: bool = False) -> bool:
    """Whether the network takes these arguments, in eval or in train mode."""
    try:
        with untouched_random():
            inputs.call(copy.deepcopy(net).train(train))
    except Exception:  # whatever the network's own code raises
        return False
    return True
