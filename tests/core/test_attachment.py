"""What a network remembers of its method."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
from torch import nn

import paring as pr
from paring.core import Attachment, attached, set_attachment


def test_what_is_said_warns_once_and_is_kept() -> None:
    memory = Attachment(pr.Dense())
    with pytest.warns(pr.ParingWarning, match="^one$") as caught:
        memory.say("one")
    memory.say("one")  # pytest makes an error of a second warning
    assert len(caught) == 1
    with pytest.warns(pr.ParingWarning, match="^two$"):
        memory.say("two")
    assert memory.said == ["one", "two"]


def test_what_was_said_elsewhere_is_not_said_again() -> None:
    memory = Attachment(pr.Dense(), said=["two"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory.recall(["one", "two"])
        memory.say("one")
    assert memory.said == ["one", "two"]


def test_what_was_said_goes_with_copies_of_the_network_and_is_their_own() -> None:
    net = nn.Linear(2, 2)
    set_attachment(net, Attachment(pr.Dense(), said=["one"]))
    for copy_ in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with pytest.warns(pr.ParingWarning, match="two"):
            attached(copy_).say("two")
        assert attached(copy_).said == ["one", "two"]
    assert attached(net).said == ["one"]
