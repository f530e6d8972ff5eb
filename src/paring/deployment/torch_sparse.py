"""Linear layers by torch's own sparse products: CSR and blocks through MKL, 2:4 on CUDA."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.core.answers_only import AnswersOnly
from paring.deployment.deploy_error import DeployError
from paring.deployment.sparse_layers import SparseLayer


class TorchSparseLinear(AnswersOnly):
    """`nn.Linear` by torch's own sparse product (MKL), its weight in CSR or, by blocks, in BSR.

    Raises (in forward):
        DeployError: the input asks for a gradient.
    """

    instead, error = SparseLayer.instead, DeployError

    def __init__(self, layer: nn.Linear, block: int = 0) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.sparse = _compressed(layer.weight.detach(), block)
        bias = torch.zeros(self.out_features) if layer.bias is None else layer.bias.detach().clone()
        self.bias = bias[:, None]

    @property
    def weight(self) -> Tensor:
        """The dense weight, made when it is asked for."""
        return self.sparse.to_dense()

    @property
    def bytes(self) -> int:
        """What the layer holds."""
        parts = (self.sparse.crow_indices(), self.sparse.col_indices(), self.sparse.values(), self.bias)
        return sum(part.numel() * part.element_size() for part in parts)

    def forward(self, input: Tensor) -> Tensor:
        self.refuse_gradient(input)
        flat = input.reshape(-1, self.in_features)
        out = torch.addmm(self.bias, self.sparse, flat.t()).t()
        return out.reshape(*input.shape[:-1], self.out_features)


class TwoFourLinear(AnswersOnly):
    """`nn.Linear` with two zeros in every four neighbours, on the sparse tensor cores of a CUDA device.

    Raises (in forward):
        DeployError: the input asks for a gradient.
    """

    instead, error = SparseLayer.instead, DeployError

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.sparse: Tensor = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        self.bias = None if layer.bias is None else layer.bias.detach().clone()

    @property
    def weight(self) -> Tensor:
        """The dense weight, made when it is asked for."""
        return self.sparse.to_dense()

    @property
    def bytes(self) -> int:
        """What the layer holds: half of the weights, and two bits for the place of each."""
        dense = self.in_features * self.out_features * self.sparse.element_size()
        return dense // 2 + dense // (8 * self.sparse.element_size())

    def forward(self, input: Tensor) -> Tensor:
        self.refuse_gradient(input)
        return F.linear(input, self.sparse, self.bias)


def is_two_four(weight: Tensor) -> bool:
    """Whether at most two of every four neighbours in a row are not zero."""
    return weight.shape[1] % 4 == 0 and bool(((weight != 0).view(-1, 4).sum(1) <= 2).all())


def block_of(weight: Tensor) -> int:
    """The largest of 16, 8 and 4 so that the square blocks that are not zero are at least four fifths full; 0 for none."""
    nonzeros = int((weight != 0).sum())
    for size in (16, 8, 4):
        if weight.shape[0] % size or weight.shape[1] % size:
            continue
        blocks = (weight != 0).view(weight.shape[0] // size, size, -1, size).any(3).any(1)
        if nonzeros >= 0.8 * size**2 * int(blocks.sum()):
            return size
    return 0


def _compressed(weight: Tensor, block: int) -> Tensor:
    """The weight in CSR with int32 indices, or in BSR."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR|BSR) tensor support is in beta state")
        if block:
            return weight.to_sparse_bsr((block, block))
        csr = weight.to_sparse_csr()
        rows, columns = csr.crow_indices().int(), csr.col_indices().int()
        return torch.sparse_csr_tensor(rows, columns, csr.values(), weight.shape, check_invariants=True)
