"""What paring remembers about a network, in the network itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from paring.core.training_state import TrainingState
from paring.core.warning import warn

if TYPE_CHECKING:
    from paring.core.method import Method


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
    """

    method: Method
    notes: dict[Method, Any] = field(default_factory=dict)
    state: TrainingState = field(default_factory=TrainingState)
    said: list[str] = field(default_factory=list)
    quiet: bool = False

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


_KEY = "_paring_attachment"


def attached(net: nn.Module) -> Attachment:
    """The network's attachment.

    Raises:
        ValueError: nothing is attached to this network.
    """
    found = net.__dict__.get(_KEY)
    if not isinstance(found, Attachment):
        raise ValueError(
            f"no method is attached to this {type(net).__name__}; call paring.attach(net, method, example) first"
        )
    return found


def is_attached(net: nn.Module) -> bool:
    """Whether a method is attached to this very module."""
    return isinstance(net.__dict__.get(_KEY), Attachment)


def set_attachment(net: nn.Module, attachment: Attachment | None) -> None:
    """Put (or with None, take away) the network's attachment. It is no submodule: `nn.Sequential` stays callable."""
    if attachment is None:
        net.__dict__.pop(_KEY, None)
    else:
        net.__dict__[_KEY] = attachment
