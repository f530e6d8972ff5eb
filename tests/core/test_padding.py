"""Which positions are padding: read off the masks that a network is called with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paring.core.padding import watched_padding

MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])
X = torch.arange(12.0).view(2, 3, 2)


class Masked(nn.Module):
    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return x


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 1, 4, batch_first=True)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        said: Tensor = self.layer(x, src_key_padding_mask=real == 0)
        return said


def test_masks_are_found_by_name_and_by_place() -> None:
    net = Masked()
    for given in (lambda: net(X, MASK), lambda: net(X, attention_mask=MASK), lambda: net(X, MASK.bool())):
        with watched_padding(net) as padding:
            given()
            assert torch.equal(padding.rows(X), X[MASK != 0])
    with watched_padding(net) as padding:
        net(X, MASK)
        net(X)
        assert torch.equal(padding.rows(X), X.reshape(6, 2)), "the last call had no mask"


def test_modules_within_tell_as_well_and_torchs_masks_are_the_other_way_round() -> None:
    net = Torch()
    with watched_padding(net) as padding:
        net(X, MASK)
        assert torch.equal(padding.rows(X), X[MASK != 0])


def test_only_what_lies_along_the_mask_is_selected() -> None:
    net = Masked()
    with watched_padding(net) as padding:
        net(X, MASK)
        other = torch.arange(16.0).view(2, 4, 2)
        assert torch.equal(padding.rows(other), other.reshape(8, 2))
        net(X, MASK.float()[:, None, None])  # scores that are added, in four dimensions
        assert torch.equal(padding.rows(X), X.reshape(6, 2))


def test_nothing_is_left_behind() -> None:
    net = Torch()
    with watched_padding(net):
        pass
    assert all(not module._forward_pre_hooks for module in net.modules())
