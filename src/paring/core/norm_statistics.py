"""Running statistics of BatchNorms made anew, in whatever loop trains the network.

When gates are held the network is another one, and running means and variances are of the one before. There is no data to
estimate them from but what the loop passes through in train mode, so the first passes count more: the momentum is one in the
first step, a half in the second, a quarter in the third, and so on down to the norm's own. A norm that the loop keeps in
eval mode sees no pass and stays as it is.

    mean after k steps  =  2⁻ᵏ mean of the step's batch + (1 − 2⁻ᵏ) mean before,  k = 0, 1, ... while 2⁻ᵏ > momentum

A norm without momentum averages over all batches; its count begins anew.

The norms' own momenta and the counts are in the attachment's state, as `momentum` is in no `state_dict` of torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from paring.core.attachment import attached

_KEY = "momentum of "


def renew_statistics(net: nn.Module) -> None:
    """Let the statistics of all norms follow the next passes in train mode alone."""
    for name, module in net.named_modules():
        if not isinstance(getattr(module, "running_mean", None), Tensor):
            continue
        momentum = getattr(module, "momentum", None)
        if momentum == 0:
            continue  # it is to stay as it is
        if isinstance(momentum, int | float):
            attached(net).state.tensors.setdefault(
                _KEY + name, torch.tensor([float(momentum), 0.0], dtype=torch.float64)
            )
        elif isinstance(count := getattr(module, "num_batches_tracked", None), Tensor):
            count.zero_()
    set_momenta(net)


def advance_statistics(net: nn.Module) -> None:
    """An optimizer step is done: go on towards the norms' own momenta."""
    for _, entry in _entries(net):
        entry[1] += 1
    set_momenta(net)


def set_momenta(net: nn.Module) -> None:
    """Give norms the momentum that the attachment's state says, their own where that is reached."""
    for name, entry in _entries(net):
        own, now = float(entry[0]), 0.5 ** float(entry[1])
        net.get_submodule(name).momentum = max(own, now)
        if now <= own:
            del attached(net).state.tensors[_KEY + name]


def restore_momenta(net: nn.Module) -> None:
    """Give all norms their own momenta back."""
    for name, entry in _entries(net):
        net.get_submodule(name).momentum = float(entry[0])  # type: ignore[assignment]
        del attached(net).state.tensors[_KEY + name]


def misfit(net: nn.Module, tensors: Mapping[str, object]) -> str | None:
    """The name of a tensor of a loaded state that is said to be of a norm and is not; None where all fit."""
    modules = dict(net.named_modules())
    for key in (key for key in tensors if key.startswith(_KEY)):
        entry, norm = tensors[key], modules.get(key.removeprefix(_KEY))
        right = isinstance(entry, Tensor) and entry.shape == (2,) and entry.dtype == torch.float64
        if not right or not isinstance(getattr(norm, "running_mean", None), Tensor):
            return key
        assert isinstance(entry, Tensor)
        if not (0 <= float(entry[0]) <= 1 and 0 <= float(entry[1]) <= 1024):
            return key
    return None


def _entries(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    found = attached(net).state.tensors
    return ((key.removeprefix(_KEY), found[key]) for key in list(found) if key.startswith(_KEY))
