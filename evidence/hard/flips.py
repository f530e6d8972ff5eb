"""The loss of each example when a hard layer outputs something else, and the heuristic gradient of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.hard.units import Sign, Staircase

Losses = Callable[[Tensor, Tensor], Tensor]
_ROWS = 512  # examples in a pass


def each_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of every example."""
    return F.cross_entropy(outputs, y, reduction="none")


Layer = tuple[str, nn.Module, Tensor, Tensor]


def gradients(net: nn.Module, x: Tensor, y: Tensor, losses: Losses) -> tuple[Tensor, list[Layer]]:
    """Loss of every example, and the hard layers as they run: name, module, outputs h, and G = ∂ sum of losses / ∂h."""
    seen: list[tuple[str, nn.Module, Tensor]] = []

    def keep(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
            h = output if output.requires_grad else output.requires_grad_()
            seen.append((name, module, h))
            return h

        return hook

    hard = {name: module for name, module in net.named_modules() if isinstance(module, Sign | Staircase)}
    handles = [module.register_forward_hook(keep(name)) for name, module in hard.items()]
    try:
        with torch.enable_grad():
            now = losses(net(x), y)
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, _, _ in seen]
    if not seen or len(set(names)) < len(names):
        raise ValueError(f"hard units that ran: {names}; there must be some, each a module of its own that runs once")
    found = torch.autograd.grad(now.sum(), [h for _, _, h in seen], allow_unused=True)
    layers = [
        (name, module, h.detach(), torch.zeros_like(h) if g is None else g)
        for (name, module, h), g in zip(seen, found, strict=True)
    ]
    return now.detach(), layers


def level(module: nn.Module, h: Tensor, way: int) -> Tensor:
    """The next level of a sign or staircase, up (way = 1) or down (-1); the same at the end."""
    if isinstance(module, Staircase):
        return ((h * module.steps).round() + way).clamp(0, module.steps) / module.steps
    return torch.full_like(h, way)


def losses_with(net: nn.Module, module: nn.Module, h: Tensor, x: Tensor, y: Tensor, losses: Losses) -> Tensor:
    """Losses when the layer outputs h, in passes of some hundred examples."""
    found = []
    for start in range(0, len(x), _ROWS):
        part = slice(start, start + _ROWS)

        def put(_: nn.Module, __: tuple[Tensor, ...], output: Tensor, part: slice = part) -> Tensor:
            return h[part]

        handle = module.register_forward_hook(put)
        try:
            with torch.no_grad():
                found.append(losses(net(x[part]), y[part]))
        finally:
            handle.remove()
    return torch.cat(found)


@contextmanager
def evaluated(net: nn.Module) -> Iterator[None]:
    """In eval mode, and back."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
