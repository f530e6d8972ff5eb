"""What paring remembers about a network, in the network itself, and in its state dict.

A network with a method has one entry more in its state dict: what training needs to go on from there, as bytes. Whatever
saves and loads networks keeps it. The entry's name says what to do where it is not expected.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from paring.core.gate import Gate
from paring.core.training_state import TrainingState
from paring.core.warning import warn

if TYPE_CHECKING:
    from paring.core.method import Method


STATE_KEY = "call_paring_attach_before_load_state_dict"
"""The entry of a state dict, and the attribute of a network, that paring keeps what it remembers in."""


class Memory(Protocol):
    """Whoever knows where training stands."""

    def packed(self, net: nn.Module) -> Tensor:
        """What has to survive, as bytes (n,); `net` is the trained network or a copy of it."""
        ...

    def unpack(self, net: nn.Module, packed: Tensor) -> None:
        """Go on from there: `net`, which is about to load the tensors beside it, gets their sizes."""
        ...


@dataclass
class Attachment:
    """What paring remembers about one network, carried by the network itself through deepcopy and pickle.

    Attributes:
        method: the method that was attached.
        notes: what each method computed while attaching (cost models, sites, ...), by the method itself.
        state: what changes while training (cuts, multipliers, tensors of methods); part of `Run.state_dict`.
        said: what was asked and not done, or not as asked, in the order it was said; part of `Run.state_dict` and of
            `run.report`.
        quiet: whether it is kept without a warning.
        memory: whoever knows where training stands, the same for the network's copies; None after pickling, until it is
            there again.
    """

    method: Method
    notes: dict[Method, Any] = field(default_factory=dict)
    state: TrainingState = field(default_factory=TrainingState)
    said: list[str] = field(default_factory=list)
    quiet: bool = False
    memory: Memory | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"memory": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        made = object.__new__(type(self))
        memo[id(self)] = made
        made.__dict__ |= {name: deepcopy(value, memo) for name, value in self.__getstate__().items()}
        made.memory = self.memory
        return made

    def say(self, message: str) -> None:
        """Warn of something that was asked and is not done, or not as asked, and keep it for `run.report`; once each.

        Args:
            message: what, why and what to do, with names and numbers.
        """
        if message not in self.said:
            self.said.append(message)
            if not self.quiet:
                warn(message)

    def recall(self, said: Iterable[str]) -> None:
        """Keep what was said in another process, or about a copy, without saying it again."""
        self.said[:] = dict.fromkeys([*said, *self.said])


def attached(net: nn.Module) -> Attachment:
    """The network's attachment.

    Raises:
        ValueError: nothing is attached to this network.
    """
    found = net.__dict__.get(STATE_KEY)
    if not isinstance(found, Attachment):
        raise ValueError(
            f"no method is attached to this {type(net).__name__}; call paring.attach(net, method, example) first"
        )
    return found


def is_attached(net: nn.Module) -> bool:
    """Whether a method is attached to this very module."""
    return isinstance(net.__dict__.get(STATE_KEY), Attachment)


def set_attachment(net: nn.Module, attachment: Attachment | None) -> None:
    """Put (or with None, take away) the network's attachment. It is no submodule: `nn.Sequential` stays callable."""
    held: tuple[dict[int, Any], ...] = (net._state_dict_hooks, net._load_state_dict_pre_hooks)
    for hooks in held:  # by what they are: a copy of the network has no handles of its own
        for key in [key for key, hook in hooks.items() if getattr(hook, "hook", hook) in (_write, _read)]:
            del hooks[key]
    net.__dict__.pop(STATE_KEY, None)
    if attachment is not None:
        net.__dict__[STATE_KEY] = attachment
        net.register_state_dict_post_hook(_write)
        net.register_load_state_dict_pre_hook(_read)


def bare_state(net: nn.Module) -> dict[str, Any]:
    """The state dict of a network without what paring keeps in it."""
    return {name: value for name, value in net.state_dict().items() if name != STATE_KEY}


def _aliases(net: nn.Module) -> dict[str, str]:
    """Further paths to gates that several layers hold -> the first path."""
    first: dict[Gate, str] = {}
    found: dict[str, str] = {}
    for path, module in net.named_modules(remove_duplicate=False):
        if isinstance(module, Gate) and first.setdefault(module, path) != path:
            found[f"{path}."] = f"{first[module]}."
    return found


def _write(net: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """What a network's state dict gets on top, and what it loses: a shared gate once is enough, and all that files take."""
    again = tuple(prefix + path for path in _aliases(net))
    for name in [name for name in state if again and name.startswith(again)]:
        del state[name]
    memory = attached(net).memory
    if memory is not None:
        state[prefix + STATE_KEY] = memory.packed(net)


def _read(net: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    packed, memory = state.pop(prefix + STATE_KEY, None), attached(net).memory
    if memory is not None and packed is not None:
        memory.unpack(net, packed)
    for path, first in _aliases(net).items():
        for name in [name for name in state if name.startswith(prefix + first)]:
            state.setdefault(prefix + path + name.removeprefix(prefix + first), state[name])
