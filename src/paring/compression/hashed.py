"""HashedNets (Chen et al., ICML 2015): weights share values by a random hash, learned from the given network on.

    W_ij = xi(i, j) c_{h(i, j)}

h and the sign xi come from a seed, so that the file holds the values c and the seed: indices cost nothing. Learned against random
sharing is this against `Codebooks` of as many bytes.

Where we differ: values begin at the mean of the weights that share them (signs applied), not at random; the hash is a
seeded random table (drawn again on loading) and not xxHash.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from paring.compression.task import Compressor, Task, working_copy
from paring.compression.tensors import weights_of
from paring.compression.training import Descent
from paring.compression.tuning import estimate_norms


class Hash(nn.Module):
    """Values (k,) -> a weight of a shape, by a seeded hash with signs."""

    where: Tensor
    sign: Tensor

    def __init__(self, shape: torch.Size, size: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.size, self.shape = size, shape
        self.register_buffer("seed", torch.tensor(seed))
        self.register_buffer("where", torch.randint(size, shape, generator=generator), persistent=False)
        sign = torch.randint(2, shape, generator=generator).float() * 2 - 1
        self.register_buffer("sign", sign, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        return values[self.where] * self.sign

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The values whose weights are the nearest to the given ones."""
        flat, where = (weight * self.sign).flatten(), self.where.flatten()
        count = torch.bincount(where, minlength=self.size).clamp_min(1)
        total: Tensor = torch.zeros(self.size, dtype=weight.dtype).index_add_(0, where, flat)
        return total / count


def hashed(net: nn.Module, share: float, seed: int) -> nn.Module:
    """A copy whose weights come from a hash, a share of as many values as there are weights in each tensor.

    Tied weights keep one set of values.

    Args:
        net: any module; on the CPU.
        share: values of a tensor over its entries, in (0, 1].
        seed: of all hashes.

    Raises:
        ValueError: there are recurrent layers.
    """
    if any(isinstance(module, nn.RNNBase) for module in net.modules()):
        raise ValueError(
            "Hashed: recurrent layers keep their weights in a list of their own, which a hash cannot replace"
        )
    twin = working_copy(net)
    given = {id(weight): weight.detach().clone() for weight in weights_of(twin).values()}
    made: dict[int, tuple[Hash, nn.Parameter]] = {}
    for module in list(twin.modules()):
        for leaf, weight in list(module._parameters.items()):
            if weight is None or id(weight) not in given:
                continue
            key = id(weight)
            if key not in made:
                size = max(1, round(share * weight.numel()))
                rule = Hash(weight.shape, size, seed * 1_000_003 + len(made))
                parametrize.register_parametrization(module, leaf, rule, unsafe=True)
                made[key] = rule, _values(module, leaf)
            else:
                module.register_parameter(leaf, nn.Parameter(given[key].clone()))
                parametrize.register_parametrization(module, leaf, made[key][0], unsafe=True)
                _owner(module, leaf).original = made[key][1]
    return twin


def _owner(module: nn.Module, leaf: str) -> parametrize.ParametrizationList:
    found = module.parametrizations[leaf]  # type: ignore[index]
    assert isinstance(found, parametrize.ParametrizationList)
    return found


def _values(module: nn.Module, leaf: str) -> nn.Parameter:
    found = _owner(module, leaf).original
    assert isinstance(found, nn.Parameter)
    return found


@dataclass(frozen=True)
class Hashed(Compressor):
    """Random weight sharing.

    Args:
        shares: values over weights in every tensor; the largest first, until the bound breaks.
        epochs: of training at each.
        lr: learning rate, the training's by default.
        seed: of the hash.

    Raises:
        ValueError: a number out of its range.
    """

    shares: tuple[float, ...] = (1 / 8, 1 / 64)
    epochs: float = 5.0
    lr: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share <= 1 for share in self.shares) or not self.epochs > 0:
            raise ValueError(f"Hashed(shares={self.shares}, epochs={self.epochs}): shares in (0, 1], positive epochs")

    @property
    def trains(self) -> bool:
        return True

    def run(self, task: Task) -> None:
        for share in sorted(self.shares, reverse=True):
            net = hashed(task.net, share, self.seed)
            Descent(task.training, list(net.parameters()), self.epochs, lr=self.lr).run(net)
            estimate_norms(net, task.training)
            _halve(_hashed_values(net))
            if not task.offer(net, share=share).within:
                return


def _hashed_values(net: nn.Module) -> Iterable[Tensor]:
    for module in net.modules():
        if isinstance(module, parametrize.ParametrizationList) and any(isinstance(one, Hash) for one in module):
            yield module.original


@torch.no_grad()
def _halve(tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        tensor.copy_(tensor.half().to(tensor.dtype))
