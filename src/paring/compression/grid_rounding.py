"""Rate-distortion rounding on a uniform grid, after training (as DeepCABAC does: Wiedemann et al., arXiv 1907.11900).

    q_i = argmin over {floor(w_i / s), ceil(w_i / s), 0} of  h_i (w_i - s q)^2 - beta s^2 log2 p_q

p are the shares of the grid points, estimated again after every sweep; s is a step for each tensor. No training. Where the
finest step breaks the bound the search goes on to finer ones, and to a step for each row.

Where we differ: shares of the whole tensor in place of CABAC's contexts, our range coder behind it, and h = 1 unless asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paring.compression.step_sizes import finest, mean_square, short, spread
from paring.compression.task import Compressor, Step, Task, working_copy
from paring.compression.tensors import weights_of

FINER, TIMES = 2**0.5, 16  # one step and the next finer one, and how often


def rounded(weight: Tensor, step: float, price: float, curvature: Tensor | None = None, sweeps: int = 4) -> Tensor:
    """Grid points of the smallest cost.

    Args:
        weight: any shape.
        step: s, positive.
        price: beta, in units of s^2 (times the mean curvature) for a bit.
        curvature: h, as the weight; 1 by default.
        sweeps: rounds of estimating shares and choosing.

    Returns:
        q, int64, of the weight's shape.
    """
    scaled = weight.detach().double().flatten() / step
    h = torch.ones_like(scaled) if curvature is None else curvature.detach().double().flatten()
    h = h / h.mean().clamp_min(1e-300)
    low = scaled.floor().long()
    candidates = torch.stack([low, low + 1, torch.zeros_like(low)])
    chosen = scaled.round().long()
    offset = int(min(int(low.min()), 0)) if len(low) else 0
    size = (int(max(int(low.max()) + 1, 0)) if len(low) else 0) - offset + 1
    distance = h * (scaled - candidates).square()
    for _ in range(sweeps if price > 0 else 0):
        count = torch.bincount(chosen - offset, minlength=size).double() + 0.5
        bits = -(count / count.sum()).log2()
        best = (distance + price * bits[candidates - offset]).argmin(0)
        fresh = candidates.gather(0, best[None])[0]
        if torch.equal(fresh, chosen):
            break
        chosen = fresh
    return chosen.view(weight.shape)


@dataclass(frozen=True)
class GridRounding(Compressor):
    """Rate-distortion rounding.

    Args:
        steps: grid steps to try, in units of each tensor's root mean square weight; the finest first. Where that one breaks
            the bound, finer ones are tried, and steps in units of each row's root mean square weight.
        prices: beta for each step; from the lowest while the bound holds.
        curvature: weight squared distances by the diagonal of the empirical Fisher information, damped by its mean.

    Raises:
        ValueError: a step that is not positive or a negative price, or none.
    """

    steps: tuple[float, ...] = (0.1, 0.2, 0.4, 0.7, 1.0, 1.5)
    prices: tuple[float, ...] = (0.0, 0.1, 0.3)
    curvature: bool = False

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) <= 0 or not self.prices or min(self.prices) < 0:
            raise ValueError(f"GridRounding(steps={self.steps}, prices={self.prices}): positive steps, prices from 0")

    @torch.no_grad()
    def run(self, task: Task) -> None:
        h: dict[str, Tensor] = {}
        if self.curvature:
            fisher = task.bound.objective.curvature(task.net, list(weights_of(task.net)))
            h = {name: value + value.mean().clamp_min(1e-30) for name, value in fisher.items()}
        for first, width in enumerate(sorted(self.steps)):
            for number, price in enumerate(sorted(self.prices)):
                twin = working_copy(task.net)
                for name, weight in weights_of(twin).items():
                    step = _half(width * float(weight.double().square().mean().sqrt()))
                    if step > 0:
                        found = rounded(weight, step, price, h.get(name)) * step
                        weight.copy_(found.half().to(weight.dtype) if step < 8 else found)
                step_ = task.offer(twin, step=width, price=price)
                if not step_.within:
                    if first == number == 0:
                        self._finer(task, h)
                    if number == 0:
                        return
                    break

    def _finer(self, task: Task, h: dict[str, Tensor]) -> None:
        """Finer steps of each tensor, and steps of each row, up to the first that keeps the bound."""
        given = sorted(self.steps)
        finer = [given[0] * FINER**-number for number in range(1, TIMES + 1)]
        for rows, widths in ((False, finer), (True, [given[0], *finer])):
            end = _finest(task.net, rows)
            tried = [width for width in widths if width * FINER > end]  # beyond that, one is like the other
            number = next((n for n, width in enumerate(tried) if self._priced(task, h, width, rows)), None)
            if rows and number == 0:
                any(not self._priced(task, h, width, rows) for width in given[1:])

    def _priced(self, task: Task, h: dict[str, Tensor], width: float, rows: bool) -> bool:
        """Offer this step at the lowest price, then at higher ones while the bound holds; whether the first kept it."""
        for number, price in enumerate(sorted(self.prices)):
            if not _offer(task, h, width, price, rows).within:
                return number > 0
        return True


def _finest(net: nn.Module, rows: bool) -> float:
    """The finest of the steps at which levels end, in units of the root mean square weight."""
    ends = [finest(w, rows) / spread(mean_square, w, rows).clamp_min(1e-300) for w in weights_of(net).values()]
    return min((float(end[end > 0].min()) for end in ends if bool((end > 0).any())), default=math.inf)


def _offer(task: Task, h: dict[str, Tensor], width: float, price: float, rows: bool) -> Step:
    twin = working_copy(task.net)
    for name, weight in weights_of(twin).items():
        step = short(torch.maximum(width * spread(mean_square, weight, rows), finest(weight, rows)))
        safe = step.where(step > 0, torch.ones_like(step))
        curvature = (h.get(name, 1.0) * safe.square()).expand(weight.shape)
        weight.copy_(rounded(weight.double() / safe, 1.0, price, curvature) * safe)
    return task.offer(twin, step=width, price=price, **({"per_row": 1} if rows else {}))


def _half(value: float) -> float:
    return float(torch.tensor(value).half())
