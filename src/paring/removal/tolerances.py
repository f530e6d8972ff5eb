"""Are two lists of outputs the same? The one comparison, and the one place for its tolerances.

Errors are relative to the largest magnitude of each output. In float64 only the mathematics shows, in any other type
rounding does as well; how much of it there has to be is measured on the old network, where it also runs in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from paring.core import Refusal

EXACT = 1e-10  # in float64
ROUNDED = 1e-5  # in float32
HALF = {torch.float16: 2.0**-6, torch.bfloat16: 2.0**-3}  # sixteen units in the last place
UNMEASURED = 3e-5  # rounding error of a network that runs in float32 and in nothing finer
OWN = 4.0  # or so many times the rounding error of the old network itself
CONSTANT = 100.0  # what is exactly the same counts as at most so many times what is not
LEAST = 1e-5  # outputs below this are compared as if they were so large: in float64 they are rounding errors of others


def as_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats in this type, complex numbers in pairs of it, others as they are."""
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def in_type(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same network with all its numbers in this type; `net.to` would make complex ones real."""
    made: nn.Module = net._apply(lambda tensor: as_type(tensor, dtype))
    return made


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative error between outputs of this type that needs no other explanation than rounding."""
    return EXACT if dtype in (torch.float64, torch.complex128) else HALF.get(dtype, ROUNDED)


def differs(
    old: Sequence[Tensor], new: Sequence[Tensor], dtype: torch.dtype, rounding: Callable[[], float] = lambda: 0.0
) -> Refusal | None:
    """None when two networks' outputs agree, else what is different.

    Args:
        old: outputs of the one.
        new: outputs of the other.
        dtype: in which both were computed.
        rounding: relative rounding error of the old outputs; asked for only where the tolerance is exceeded.
    """
    if [t.shape for t in old] != [t.shape for t in new]:
        return Refusal("outputs have other shapes")
    for a, b in zip(old, new, strict=True):
        found = gap([a], [b])
        if found == torch.inf:
            return Refusal("outputs are NaN or infinite in other places")
        least = max(tolerance(dtype), tolerance(a.dtype)) if a.is_floating_point() or a.is_complex() else EXACT
        if found > least and (dtype == torch.float64 or found > OWN * rounding()):
            return Refusal(f"outputs differ by {found:.1e} in {str(dtype).removeprefix('torch.')}")
    return None


def gap(old: Sequence[Tensor], new: Sequence[Tensor]) -> float:
    """Largest difference relative to the largest magnitude of each output.

    Infinite for other shapes, or where NaNs and infinities are in other places.

    What is exactly the same counts as at most `CONSTANT` times what is not, or constants such as a mask's -1e9 would hide
    the rest.
    """
    if [t.shape for t in old] != [t.shape for t in new]:
        return torch.inf
    worst = 0.0
    for a, b in zip(map(_numbers, old), map(_numbers, new), strict=True):
        finite = a.isfinite() & b.isfinite()
        if not torch.equal(_special(a, finite), _special(b, finite)):
            return torch.inf
        a, b = a[finite], b[finite]
        apart = a != b
        if bool(apart.any()):
            scale = torch.minimum(a.abs().max(), CONSTANT * a[apart].abs().max()).clamp_min(LEAST)
            worst = max(worst, float((a - b).abs().max() / scale))
    return worst


def _numbers(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().double()


def _special(values: Tensor, finite: Tensor) -> Tensor:
    """The values that are not finite, NaN as a number that equals itself."""
    return torch.where(finite, 0.0, torch.nan_to_num(values, nan=0.5, posinf=1.0, neginf=-1.0))


def refuse_nan(net: nn.Module, found: Sequence[Tensor]) -> None:
    """Say where a NaN comes from, before anything else is blamed for it.

    Args:
        net: the network.
        found: its outputs on the example. NaN here and there may be meant (rows that are masked fully), but not together
            with weights that are, and not everywhere.

    Raises:
        ValueError: an output holds NaN and so does a weight or buffer, or an output is NaN or infinite everywhere.
    """
    broken = [t for t in found if (t.is_floating_point() or t.is_complex()) and not bool(t.isfinite().all())]
    if any(bool(t.isnan().any()) for t in broken):
        for name, held, kind in _tensors(net):
            if held.is_floating_point() and (count := int(held.isnan().sum())):
                raise ValueError(
                    f"{kind} '{name}' of this {type(net).__name__} holds NaN in {count} of {held.numel()} entries, so there is "
                    "nothing to compare. Training diverged, or the file is damaged: go back to weights that are finite"
                )
    for t in broken:
        if not bool(t.isfinite().any()):
            what = "NaN" if bool(t.isnan().any()) else "infinite"
            raise ValueError(
                f"the network's own output is {what} on the example in all of its {t.numel()} entries, although no weight "
                f"of this {type(net).__name__} is NaN, so there is nothing to compare. Check that the example is finite, "
                "and look for a division, a logarithm or an overflow in the forward"
            )


def _tensors(net: nn.Module) -> list[tuple[str, Tensor, str]]:
    parameters = [(name, p.detach(), "weight") for name, p in net.named_parameters()]
    return [*parameters, *((name, b, "buffer") for name, b in net.named_buffers())]


@contextmanager
def one_path() -> Iterator[None]:
    """`nn.MultiheadAttention` without its fast path meanwhile.

    That gives NaN for rows that are masked fully, where the other gives numbers, and is taken by some networks only.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
