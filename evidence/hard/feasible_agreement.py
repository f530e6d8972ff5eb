"""The heuristic's targets against feasible ones: what `ftprop` changes in a network, and what sign(-G) would change.

A network of sign units and a task on which FTPROP, started at its weights, finds a network without error. Its hidden
patterns are targets that are feasible and leave no loss. Where they differ from what the network outputs now, does the
heuristic's target point to the new value? A random one does half of the time. Solutions are many, and this is but the
one that the search reaches from here; so a low agreement is weak evidence, agreement well above one half strong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from paring.hard.feasible import Separable, separate
from paring.hard.outcome import Found, Outcome
from paring.hard.target_propagation import Objective, TargetPropagation
from paring.hard.target_search import ftprop
from paring.hard.units import Sign


@dataclass(frozen=True)
class FeasibleAgreement:
    """One hidden layer; None where nothing is to be counted.

    Args:
        layer: number of the hidden layer, from 0.
        changed: share of the outputs (units times examples) that the feasible targets change.
        agreement: share of these, where the heuristic has a target, on which it is the feasible one.
        kept: share of the unchanged outputs, where the heuristic has a target, on which it is the present value.
        feasible: share of the units whose heuristic targets are linearly separable given the layer below.
    """

    layer: int
    changed: float
    agreement: float | None
    kept: float | None
    feasible: float


def sign_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Logistic loss of targets -1 and +1, a mean over examples and outputs."""
    return F.softplus(-y * outputs).mean()


def feasible_agreement(
    net: nn.Sequential, x: Tensor, y: Tensor, *, objective: Objective = sign_loss, budget: int = 2000, seed: int = 0
) -> tuple[Outcome, tuple[FeasibleAgreement, ...]]:
    """Search from the network's weights, and compare; without a network that is found there is nothing to compare.

    Args:
        net: Linear, Sign, Linear, ..., Linear. It is not changed.
        x: (N, d) examples.
        y: (N,) or (N, outputs) targets of -1 and +1.
        objective: (outputs, targets) → the loss whose G is taken.
        budget, seed: of `ftprop`.

    Raises:
        ValueError: the network is no such sequence; see also `ftprop`.
    """
    linear, signs = list(net)[::2], list(net)[1::2]
    if not (all(isinstance(m, nn.Linear) for m in linear) and signs and all(isinstance(m, Sign) for m in signs)):
        raise ValueError(f"{net}: must be Linear, Sign, Linear, ..., Linear, the hard units with a margin between them")
    points, wanted = x.double().numpy(), y.reshape(len(y), -1).numpy().astype(np.int8)
    start = [(m.weight.detach().double().numpy(), _bias(m)) for m in linear[:-1] if isinstance(m, nn.Linear)]
    widths = [len(bias) for _, bias in start]
    outcome = ftprop(points, wanted, widths, budget=budget, enumeration=0, seed=seed, start=start)
    if not isinstance(outcome, Found):
        return outcome, ()
    heuristic = TargetPropagation(net, objective=objective).targets(x, y.reshape(len(y), -1).to(x.dtype))
    layers = []
    below = points
    for number, (asked, goal) in enumerate(zip(heuristic, outcome.patterns(points)[:-1], strict=True)):
        now, aim = (value.numpy().astype(np.int8) for value in (asked.outputs, asked.targets))
        changed, told = goal != now, aim != 0
        layers.append(
            FeasibleAgreement(
                layer=number,
                changed=float(changed.mean()),
                agreement=_share((aim == goal)[changed & told]),
                kept=_share((aim == goal)[~changed & told]),
                feasible=float(np.mean([isinstance(separate(below, column), Separable) for column in aim.T])),
            )
        )
        below = now.astype(np.float64)
    return outcome, tuple(layers)


def _bias(linear: nn.Linear) -> NDArray[np.float64]:
    if linear.bias is None:
        return np.zeros(linear.out_features)
    found: NDArray[np.float64] = linear.bias.detach().double().numpy()
    return found


def _share(hits: NDArray[np.bool_]) -> float | None:
    return float(hits.mean()) if hits.size else None
