"""Is the function still the same? Old and new network, side by side, on copies.

Inputs: the example itself and random inputs like it with batches of 1, 2 and 3. In float64 (the plan applied to a
float64 copy, so that only the mathematics is checked) outputs must agree to 1e-10 of their largest magnitude; in
float32 to 1e-5, or to four times the old network's own rounding error where that is larger. Running statistics and
random states of the networks and of the process are left alone.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paring.graph.apply import apply
from paring.graph.capture import Example, as_inputs, batch_size, untouched_random
from paring.graph.plan import ShrinkPlan

EXACT, ROUNDED = 1e-10, 1e-5
Inputs = tuple[object, ...]


def verify(net: nn.Module, plan: ShrinkPlan, example: Example, *, train: bool = False) -> str:
    """Empty when `plan` leaves the function of `net` alone; else what differs, for the user's eyes.

    train: check train mode as well (only where the network has no dropout or other noise).
    """
    inputs = as_inputs(example)
    trials = [inputs, *(_random_like(inputs, n) for n in (1, 2, 3))]
    with untouched_random(), torch.no_grad():
        exact, rounded = _copies(net, plan, torch.float64), _copies(net, plan, torch.float32)
        for mode in (False, True) if train else (False,):
            for old, new in (exact, rounded):
                old.train(mode)
                new.train(mode)
            if mode and _noisy(rounded[0], _cast(inputs, torch.float32)):
                continue
            problems = [_compare(exact, rounded, trial) for trial in trials]
            if all(problem is None for problem in problems):
                return f"the network refuses the example itself in {'train' if mode else 'eval'} mode"
            for trial, problem in zip(trials, problems, strict=True):
                if problem:
                    shapes = [tuple(t.shape) for t in pytree.tree_leaves(trial) if isinstance(t, Tensor)]
                    return f"{problem} in {'train' if mode else 'eval'} mode on inputs of shape {shapes}"
    return ""


def _compare(exact: tuple[nn.Module, nn.Module], rounded: tuple[nn.Module, nn.Module], trial: Inputs) -> str | None:
    """What differs; None when the old network refuses this input, so that there was nothing to compare."""
    wide, narrow = _cast(trial, torch.float64), _cast(trial, torch.float32)
    truth, before = _outputs(exact[0], wide), _outputs(rounded[0], narrow)
    if not isinstance(truth, str):
        found = _outputs(exact[1], wide)
        if isinstance(found, str):
            return f"the smaller network fails with {found}"
        if (gap := _gap(truth, found)) > EXACT:
            return f"outputs differ by {gap:.1e} in float64"
    if not isinstance(before, str):
        after = _outputs(rounded[1], narrow)
        if isinstance(after, str):
            return f"the smaller network fails with {after}"
        noise = 0.0 if isinstance(truth, str) else _gap(truth, before)
        if (gap := _gap(before, after)) > max(ROUNDED, 4 * noise):
            return f"outputs differ by {gap:.1e} in float32"
    return None if isinstance(truth, str) and isinstance(before, str) else ""


def _copies(net: nn.Module, plan: ShrinkPlan, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    old = copy.deepcopy(net).to(dtype)
    return old, apply(copy.deepcopy(old), plan)


def _outputs(net: nn.Module, inputs: Inputs) -> list[Tensor] | str:
    """All output tensors, or the message of the error."""
    try:
        out = net(*pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, inputs))
    except (RuntimeError, ValueError, IndexError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    tensors = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
    if not tensors:
        raise ValueError(
            f"{type(net).__name__} returns no tensor to compare; let forward return tensors, or verify=False"
        )
    return tensors


def _gap(old: list[Tensor], new: list[Tensor]) -> float:
    """Largest difference relative to the largest magnitude of each output; infinite for other shapes or NaNs."""
    if [t.shape for t in old] != [t.shape for t in new]:
        return float("inf")
    worst = 0.0
    for a, b in zip(old, new, strict=True):
        a, b = a.double(), b.double()
        if not torch.equal(a.isfinite(), b.isfinite()):
            return float("inf")
        if a.numel() and bool(a.isfinite().any()):
            a, b = a[a.isfinite()], b[b.isfinite()]
            worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)))
    return worst


def _random_like(inputs: Inputs, batch: int) -> Inputs:
    """Inputs like the example: floats with its mean and spread, others drawn from its entries."""
    generator = torch.Generator().manual_seed(batch)
    size = batch_size(inputs)

    def draw(leaf: object) -> object:
        if not isinstance(leaf, Tensor) or leaf.numel() == 0:
            return leaf
        shape = leaf.shape if size is None else (batch, *leaf.shape[1:])
        if not leaf.is_floating_point():
            picks = torch.randint(leaf.numel(), tuple(shape), generator=generator)
            return leaf.detach().flatten()[picks.to(leaf.device)]
        noise = torch.randn(tuple(shape), generator=generator).to(leaf.device, leaf.dtype)
        spread = leaf.detach().std() if leaf.numel() > 1 else torch.ones_like(leaf).mean()
        return noise * torch.where(spread > 0, spread, 1.0) + leaf.detach().mean()

    return tuple(pytree.tree_map(draw, inputs))


def _cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return tuple(
        pytree.tree_map(lambda v: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v, inputs)
    )


def _noisy(net: nn.Module, inputs: Inputs) -> bool:
    """Does the network draw random numbers in this mode? Then two runs differ."""
    torch.manual_seed(0)
    first = _outputs(net, inputs)
    torch.manual_seed(1)
    second = _outputs(net, inputs)
    return isinstance(first, str) or isinstance(second, str) or _gap(first, second) > EXACT
