"""Naive twin of `paring.removal`: which units of a plain chain have to stay, one unit and one weight at a time.

Works on an `nn.Sequential` of stock modules in eval mode and knows nothing of graphs: it walks the list of modules with
Python loops, and takes the constants that dead units come out with from a real forward pass. Of the constants that a
padded convolution reads one stays for all: of those at least 1/64 of the largest, one that is constant before any norm
if there is, then the largest.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def survivors(chain: nn.Sequential, x: Tensor) -> list[int]:
    """How many units each layer of the chain keeps, in order."""
    inputs = _observe(chain, x)
    owners, constant, pure = _forward(chain, inputs)
    layers = [m for m in chain if isinstance(m, LAYERS)]
    kept: dict[nn.Module, set[int]] = {layers[-1]: set(range(len(layers[-1].weight)))}
    needed = {layers[-1]: set(kept[layers[-1]])}
    for producer, reader in reversed(list(itertools.pairwise(layers))):
        seen = inputs[reader].movedim(-1 if isinstance(reader, nn.Linear) else 1, 0)
        must, read = set(), set()
        merged: dict[int, float] = {}
        for column, unit in enumerate(owners[reader]):
            if any(bool((reader.weight[row, column] != 0).any()) for row in needed[reader]):
                read.add(unit)
                values = seen[column].flatten()
                same = constant[reader][column] and torch.allclose(values, values[0], rtol=1e-12, atol=0)
                padded = isinstance(reader, nn.Conv1d | nn.Conv2d) and any(reader.padding)
                if not same:
                    must.add(unit)
                elif padded and values[0] != 0:
                    merged[unit] = abs(values[0].item())
        if merged:
            fit = [unit for unit, size in merged.items() if size >= max(merged.values()) / 64]
            must.add(max(fit, key=lambda unit: (pure[producer][unit], merged[unit], -unit)))
        stay = set(must)
        if not stay:
            idle = [unit for unit in range(len(producer.weight)) if unit not in read]
            stay, must = ({idle[0]}, set()) if idle else ({0}, {0})
        kept[producer], needed[producer] = stay, must
    return [len(kept[layer]) for layer in layers]


def _observe(chain: nn.Sequential, x: Tensor) -> dict[nn.Module, Tensor]:
    seen: dict[nn.Module, Tensor] = {}
    with torch.no_grad():
        for module in chain:
            seen[module] = x
            x = module(x)
    return seen


def _forward(
    chain: nn.Sequential, inputs: dict[nn.Module, Tensor]
) -> tuple[dict[nn.Module, list[int]], dict[nn.Module, list[bool]], dict[nn.Module, list[bool]]]:
    """Per layer and input column: the unit that it reads, and whether that is independent of the network's input.

    Last: per layer and unit, whether it is constant before any norm.
    """
    first = next(iter(inputs.values()))
    owner = list(range(first.shape[1]))
    constant = [False] * first.shape[1]
    owners: dict[nn.Module, list[int]] = {}
    constants: dict[nn.Module, list[bool]] = {}
    pure: dict[nn.Module, list[bool]] = {}
    for module in chain:
        if isinstance(module, LAYERS):
            owners[module], constants[module] = owner, constant
            constant = [
                all(constant[j] or not bool((row[j] != 0).any()) for j in range(len(row))) for row in module.weight
            ]
            pure[module] = constant
            owner = list(range(len(module.weight)))
        elif isinstance(module, NORMS):
            constant = [c or bool(g == 0) for c, g in zip(constant, module.weight, strict=True)]
        elif isinstance(module, nn.Flatten):
            positions = inputs[module][0, 0].numel()
            owner = [unit for unit in owner for _ in range(positions)]
            constant = [c for c in constant for _ in range(positions)]
    return owners, constants, pure
