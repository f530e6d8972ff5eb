"""Fine-tuning of what is shared: codewords on summed gradients, biases and norms with them; BatchNorm statistics anew."""

from __future__ import annotations

import torch
from torch import nn

from paring.compression.codebook import Codebook
from paring.compression.training import Descent, Training
from paring.compression.weight_sharing import Sharing

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def tune_codewords(
    net: nn.Module, sharing: Sharing, training: Training, epochs: float, *, lr: float | None = None, first: int = 0
) -> None:
    """Train the codewords with the assignment frozen, dL/dc_k = sum over z_i = k of dL/dw_i (Han, Mao, Dally 2016).

    Biases and norms are trained along. A codeword that is exactly zero stays zero.

    Args:
        net: the network; holds the tuned weights afterwards.
        sharing: codebooks and indices; its values are replaced by the tuned ones.
        training: data and loss.
        epochs: how long.
        lr: learning rate, a tenth of the training's by default.
        first: number of the first epoch.
    """
    names = [name for group in sharing.groups.values() for name in group]
    shared = {name: net.get_parameter(name) for name in names}
    words = {
        group: book.values.float().to(shared[sharing.groups[group][0]].device) for group, book in sharing.books.items()
    }
    free = {group: (value != 0).to(value.dtype) for group, value in words.items()}
    own = {id(p) for p in shared.values()}
    others = [p for p in net.parameters() if id(p) not in own and p.requires_grad]
    rate = training.lr / 10 if lr is None else lr
    descent = Descent(training, [*words.values(), *others], epochs, lr=rate, first=first)

    def before() -> None:
        grads = {name: p.grad for name, p in shared.items() if p.grad is not None}
        for group, value in words.items():
            if all(name in grads for name in sharing.groups[group]):
                value.grad = sharing.summed(group, grads).to(value.dtype) * free[group]
        for parameter in shared.values():
            parameter.grad = None

    sharing.write(net, words)
    descent.run(net, before=before, after=lambda: sharing.write(net, words))
    for group, book in sharing.books.items():
        sharing.books[group] = Codebook(words[group].double(), book.index)
    sharing.halve()
    sharing.write(net)


@torch.no_grad()
def estimate_norms(net: nn.Module, training: Training) -> None:
    """Running statistics of every BatchNorm anew, as plain means over one epoch of training data."""
    norms = [m for m in net.modules() if isinstance(m, _NORMS) and m.track_running_stats]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    net.train()
    for batch in training.batches(0):
        training.loss(net, batch)
    net.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
