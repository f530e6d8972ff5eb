"""Codebooks: weights that share a few learned values, found by learning and compressing in turn within a loss bound.

    assign   z_i = argmin_k  h_i (c_k - w_i)^2 - beta log2 p_k
    refit    c_k = the mean of what it was given (zero pinned if asked)
    learn    descend the loss with a pull towards the shared weights (`learning`)
    accept   the decoded network's loss is within the bound: raise beta; else go back, halve beta and the trust region
    finish   freeze z, tune the codewords on summed gradients, BatchNorm statistics anew

The first `rounds` settle codebooks of the asked size; the rounds after that (`searches`) trade bits for loss. A trust
region on w - v alone would lock, as a weight that changes its codeword jumps; it therefore bounds the latent weights'
distance from v while learning, not the jump of v.

With `gradient`, the first-order term of the loss enters the assignment: the codebooks are fitted to w - g / h, no
further from w than the trust region. Curvatures h
(the diagonal of the empirical Fisher information, damped by its mean) are off by default: after training to a small loss
they say little.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from paring.compression.learning import Alternation
from paring.compression.task import Compressor, Step, Task, working_copy
from paring.compression.training import Descent
from paring.compression.tuning import estimate_norms, tune_codewords
from paring.compression.weight_sharing import Scope, Sharing, check_scope


@dataclass(frozen=True)
class Codebooks(Compressor):
    """Weight sharing with learned assignments.

    Args:
        values: values in a codebook.
        scope: which weights share a codebook: "layer", "kind" (as many dimensions) or "global".
        zero: one value of each codebook is zero and stays zero.
        keep_zeros: weights that are zero at the start stay zero, whatever their codebook.
        rate: beta of the settling rounds, in units of the mean square weight.
        rounds: of learning and compressing with the asked settings.
        epochs: of learning in a round.
        searches: rounds of accept and reject that follow, raising beta.
        mu: first penalty.
        growth: factor of the penalty after each round.
        augmented: multipliers; without them the quadratic penalty alone.
        radius: first trust region, in units of the root mean square weight; None for none.
        curvature: weight squared distances by the Fisher diagonal.
        gradient: the first-order term in the assignment; needs `curvature` and a `radius`.
        tune: epochs of codeword tuning before a candidate is offered.

    Raises:
        ValueError: a number out of its range.
    """

    values: int = 16
    scope: Scope = "layer"
    zero: bool = False
    keep_zeros: bool = False
    rate: float = 0.0
    rounds: int = 12
    epochs: float = 1.0
    searches: int = 0
    mu: float = 1e-3
    growth: float = 1.4
    augmented: bool = True
    radius: float | None = None
    curvature: bool = False
    gradient: bool = False
    tune: float = 1.0

    def __post_init__(self) -> None:
        least = {"values": 1, "rounds": 1, "searches": 0, "epochs": 0, "rate": 0, "tune": 0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise ValueError(f"Codebooks({name}={getattr(self, name)}): must be at least {low}")
        check_scope("Codebooks", self.scope)
        if not (self.mu > 0 and self.growth >= 1 and self.epochs > 0) or not (self.radius is None or self.radius > 0):
            raise ValueError("Codebooks: mu, epochs and radius must be positive, and growth at least 1")
        if self.gradient and (not self.curvature or self.radius is None):
            raise ValueError(
                "Codebooks(gradient=True): the first-order term needs curvature=True, and a radius, without which its "
                "Newton step goes anywhere"
            )

    @property
    def trains(self) -> bool:
        return True

    def run(self, task: Task) -> None:
        net = working_copy(task.net)
        sharing = Sharing.of(net, self.scope, keep_zeros=self.keep_zeros)
        h = self._curvature(task, net, sharing)
        size = _root_mean_square([sharing.chosen(n, net.get_parameter(n)) for n in sharing.shapes])
        sharing.fit(dict(net.named_parameters()), self.values, curvature=h, rate=self.rate, zero=self.zero)
        scale = None if h is None else {name: value / value.mean() for name, value in h.items()}
        state = Alternation(
            net,
            sharing,
            mu=self.mu,
            augmented=self.augmented,
            scale=scale,
            radius=math.inf if self.radius is None else self.radius * size,
        )
        total = (self.rounds + self.searches) * self.epochs
        descent = Descent(task.training, list(net.parameters()), total, final=0.1)
        for number in range(self.rounds):
            self._turn(task, state, descent, self.rate, h)
            if number + 1 < self.rounds:
                state.multiply(self.growth)
        step = self._offer(task, state, self.rate, round(total))
        state.multiply(1.0)
        self._search(task, state, descent, h, step)

    def _search(
        self, task: Task, state: Alternation, descent: Descent, h: dict[str, Tensor] | None, step: Step
    ) -> None:
        """Raise beta while the bound holds; go back, with a smaller beta and trust region, when it does not."""
        rate = self.rate if step.within else 0.5 * self.rate
        jump, back = (self.rate or 1e-2), _kept(state)
        for number in range(self.searches):
            tried = rate + jump
            self._turn(task, state, descent, tried, h)
            step = self._offer(task, state, tried, round(descent.step / task.training.steps) + number)
            if step.within:
                rate, jump = tried, 1.5 * jump
                state.radius *= 1.5
                state.multiply(1.0)
                back = _kept(state)
            else:
                jump *= 0.5
                _restore(state, back)
                state.radius *= 0.5

    def _turn(self, task: Task, state: Alternation, descent: Descent, rate: float, h: dict[str, Tensor] | None) -> None:
        """Learn, then compress."""
        state.learn(descent, self.epochs)
        targets = state.targets()
        if self.gradient and h is not None:
            slopes = task.bound.objective.gradient(state.net, list(targets))
            targets = {
                name: value - (slopes[name] / h[name]).clamp(-state.radius, state.radius)
                for name, value in targets.items()
            }
        state.sharing.fit(targets, self.values, curvature=h, rate=rate, zero=self.zero)

    def _offer(self, task: Task, state: Alternation, rate: float, epoch: int) -> Step:
        """Tune a copy and judge it; the alternation is left as it is."""
        twin, sharing = state.compressed(), copy.deepcopy(state.sharing)
        if self.tune:
            tune_codewords(twin, sharing, task.training, self.tune, first=epoch)
        else:
            sharing.halve()
            sharing.write(twin)
        estimate_norms(twin, task.training)
        return task.offer(twin, values=self.values, rate=rate, scope=self.scope)

    def _curvature(self, task: Task, net: torch.nn.Module, sharing: Sharing) -> dict[str, Tensor] | None:
        if not self.curvature:
            return None
        fisher = task.bound.objective.curvature(net, list(sharing.shapes))
        return {name: value + value.mean().clamp_min(1e-30) for name, value in fisher.items()}


def _kept(state: Alternation) -> tuple[dict[str, Tensor], Sharing, dict[str, Tensor]]:
    return (
        {name: value.clone() for name, value in state.net.state_dict().items()},
        copy.deepcopy(state.sharing),
        {name: value.clone() for name, value in state.multiplier.items()},
    )


def _restore(state: Alternation, back: tuple[dict[str, Tensor], Sharing, dict[str, Tensor]]) -> None:
    state.net.load_state_dict(back[0])
    state.sharing, state.multiplier = copy.deepcopy(back[1]), {name: value.clone() for name, value in back[2].items()}
    state.read_shared()


def _root_mean_square(parts: list[Tensor]) -> float:
    flat = torch.cat([part.detach().flatten().double() for part in parts])
    return float(flat.square().mean().sqrt()) if len(flat) else 0.0
