"""FTPROP-MB, Algorithm 2 of Friesen and Domingos (ICLR 2018, arXiv 1710.11573): mini-batches, layer by layer.

    forward; then from the outputs down, for every layer d of hard units:
        G = ∂L_{d+1} / ∂h_d            summed over all layers that read h_d; at the top the training loss
        t = sign(-G)                   0: the unit is left alone on this example
        L_d = sum |G| l(z_d, t)        or l / B, not weighted
        a step on L_d for the weights between the layer and the hard units below it

Nothing is asked of a gradient through a hard unit. Under the default (weighted by |G|, one step, gradients passed down
before the steps) the weights' gradients are those of backpropagation with the rule ∂L/∂z = |G| ∂l/∂z, so it is one
algorithm with training by `paring.hard.gradient_rules`. Here it can also differ: another loss than the units' own, several steps
per layer towards the same targets, targets from layers that have already moved, and modules that have no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.hard.cuts import Cut, TargetMap, clamped, cutting, no_gradient, places
from paring.hard.gradient_rules import UnitLoss, targets
from paring.hard.units import Sign, Staircase, thresholds

Objective = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class LayerStep:
    """What one layer of units was asked, as tensors without dimensions.

    Args:
        name: of the module.
        loss: L_d before the step.
        moved: share of its outputs (units times examples) whose target is another value.
        ignored: share whose target is 0.
    """

    name: str
    loss: Tensor
    moved: Tensor
    ignored: Tensor


@dataclass(frozen=True)
class LayerTargets:
    """What one layer of units outputs, and what it is asked for.

    Args:
        name: of the module.
        outputs: h.
        gradient: G.
        targets: sign(-G).
    """

    name: str
    outputs: Tensor
    gradient: Tensor
    targets: Tensor


@dataclass(frozen=True)
class TargetStep:
    """The training loss and the layers, from the last to the first."""

    loss: Tensor
    layers: tuple[LayerStep, ...]


class TargetPropagation:
    """Train a network that holds `Sign` and `Staircase` modules by targets.

        trainer = TargetPropagation(net)
        for x, y in batches:
            trainer.step(x, y, opt)

    or, in a loop of one's own, `trainer.backward(x, y)` in the place of `loss.backward()`.

    Branches, residual sums and modules that are called twice are allowed. What flows past the units has its ordinary
    gradient; where much of the network lies on such a path, every layer's loss goes through it once more.

    Args:
        net: any network, not compiled or wrapped. Its hooks are gone after every call.
        loss: of the units; by default each one's own rule, which must be a loss.
        objective: (output, y) → training loss, a mean over examples. Multiplied by a constant, all weighted losses are
            (so a gradient scaler goes in here).
        inner_steps: steps of every layer on a batch, with its targets, and what is below it, fixed. Norms keep the
            statistics of the first; dropout draws anew.
        order: "together" passes gradients down before the layers move; "downwards" moves a layer first and then takes the
            targets of those below from it (as many forward passes more as there are layers and steps).
        maps: for modules without a gradient, by name: (input, output, G) → what stands for ∂loss/∂input.

    Raises:
        ValueError: no hard units, a unit whose rule is no loss, an unknown name, or a number out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        loss: UnitLoss | None = None,
        objective: Objective = F.cross_entropy,
        inner_steps: int = 1,
        order: Literal["together", "downwards"] = "together",
        maps: Mapping[str, TargetMap] | None = None,
    ) -> None:
        self.net = net
        self.objective = objective
        self.inner_steps = inner_steps
        self.order = order
        self.maps = dict(maps or {})
        self._at = places(net, self.maps)
        self._losses = {name: _loss_of(name, unit, loss) for name, unit in self._at.items() if name not in self.maps}
        if isinstance(inner_steps, bool) or not isinstance(inner_steps, int) or inner_steps < 1:
            raise ValueError(f"TargetPropagation(inner_steps={inner_steps!r}): a whole number, at least 1")
        if order not in ("together", "downwards"):
            raise ValueError(f"TargetPropagation(order={order!r}): 'together' or 'downwards'")

    def backward(self, x: Any, y: Any) -> TargetStep:
        """Add to every parameter's gradient what its layer's loss says, all layers at the weights they have now.

        Raises:
            ValueError: no gradient reaches a unit; the message says what to do.
        """
        return self._pass(x, y).told

    def targets(self, x: Any, y: Any) -> tuple[LayerTargets, ...]:
        """The targets of every layer of hard units on a batch, in the order of execution; gradients and buffers stay.

        Raises:
            ValueError: see `backward`.
        """
        kept = [(p, p.grad) for p in self.net.parameters()]
        buffers = [(buffer, buffer.clone()) for buffer in self.net.buffers()]
        for p, _ in kept:
            p.grad = None
        try:
            cuts = self._pass(x, y).cuts
        finally:
            for p, grad in kept:
                p.grad = grad
            with torch.no_grad():
                for buffer, old in buffers:
                    buffer.copy_(old)
        hard = [(cut, cut.h.grad) for cut in cuts if cut.name in self._losses]
        return tuple(LayerTargets(c.name, c.h.detach(), g, targets(g)) for c, g in hard if g is not None)

    def step(self, x: Any, y: Any, *optimizers: torch.optim.Optimizer) -> TargetStep:
        """One batch: gradients are cleared, computed, and all optimizers step, `inner_steps` times for every layer.

        Raises:
            ValueError: see `backward`; or no optimizer.
        """
        if not optimizers:
            raise ValueError("TargetPropagation.step(x, y, optimizer): give at least one optimizer")
        if self.order == "downwards":
            return self._downwards(x, y, optimizers)
        _clear(optimizers)
        made = self._pass(x, y)
        _move(optimizers)
        for _ in range(self.inner_steps - 1):
            _clear(optimizers)
            output, inputs = self._again(x, [cut.h.detach() for cut in made.cuts])
            losses = [made.asks[i](z) for i, z in enumerate(inputs) if i in made.asks and z.requires_grad]
            sum(losses, self.objective(output, y)).backward()
            _move(optimizers)
        return made.told

    def _pass(self, x: Any, y: Any) -> _Pass:
        made = self._forward(x, y)
        _descend(made.loss, "the training loss")
        for index in reversed(range(len(made.cuts))):
            cut = made.cuts[index]
            if cut.h.grad is None and self._idle(index, made, x, y):
                continue
            made.asks[index], value = self._ask(cut, cut.h.grad, made)
            if cut.z.requires_grad:
                _descend(value, repr(cut.name))
        made.check()
        return made

    def _forward(self, x: Any, y: Any) -> _Pass:
        with cutting(self.net, self._at) as cuts:
            output = self.net(x)
        if not cuts:
            raise ValueError(
                f"none of {', '.join(self._at)} ran; target propagation needs its units in the forward pass"
            )
        loss = self.objective(output, y)
        return _Pass(loss, cuts)

    def _ask(self, cut: Cut, gradient: Tensor | None, made: _Pass) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The loss of the layer below this cut, as a function of its z, and its value now; what is told of it is noted."""
        if gradient is None:
            raise ValueError(no_gradient(f"something between the output of {cut.name!r} and the training loss"))
        if cut.name in self.maps:
            slope = self.maps[cut.name](cut.z.detach(), cut.h.detach(), gradient).detach()
            if slope.shape != cut.z.shape:
                shapes = f"{tuple(slope.shape)} instead of {tuple(cut.z.shape)}"
                raise ValueError(f"the target mapping of {cut.name!r} gives a gradient of shape {shapes}, its input's")
            return lambda z: (slope * z).sum(), (slope * cut.z).sum()
        loss, target = self._losses[cut.name], targets(gradient)
        weight = loss.weight(gradient)

        def asked(z: Tensor) -> Tensor:
            return (_value(cut.module, loss, z, target) * weight).sum()

        h, low, value = cut.h.detach(), -1.0 if isinstance(cut.module, Sign) else 0.0, asked(cut.z)
        moved = torch.where(target > 0, h < 1, h > low) & (target != 0)
        ignored = (target == 0).double().mean()
        made.layers.append(LayerStep(cut.name, value.detach(), moved.double().mean(), ignored))
        return asked, value

    def _idle(self, index: int, made: _Pass, x: Any, y: Any) -> bool:
        """Whether nothing that is trained for depends on a unit: neither the training loss nor a later unit that matters."""
        held = [cut.h.detach() for cut in made.cuts]
        other = list(held)
        other[index] = -held[index] if isinstance(made.cuts[index].module, Sign) else 1 - held[index]
        seen = []
        for one in (held, other):
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(0)
                output, inputs = self._again(x, one)
                seen.append([self.objective(output, y), *(inputs[later] for later in made.asks)])
        return all(torch.equal(a, b) for a, b in zip(*seen, strict=True))

    def _again(self, x: Any, held: Sequence[Tensor]) -> tuple[Any, list[Tensor]]:
        """Output, and inputs of the units, when the units output what is held."""
        buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        with clamped(self.net, self._at, held) as inputs:
            output = torch.func.functional_call(self.net, buffers, (x,))
        if len(inputs) < len(held):
            raise ValueError(f"the network ran {len(inputs)} of its {len(held)} units; it must run alike on every pass")
        return output, inputs

    def _downwards(self, x: Any, y: Any, optimizers: Sequence[torch.optim.Optimizer]) -> TargetStep:
        made = self._forward(x, y)
        still = [cut.h.detach() for cut in made.cuts]
        for index in reversed(range(len(made.cuts) + 1)):
            top = index == len(made.cuts)
            if not top:
                cut = made.cuts[index]
                if cut.h.grad is None and self._idle(index, made, x, y):
                    continue
                made.asks[index], _ = self._ask(cut, cut.h.grad, made)
                if not cut.z.requires_grad:
                    continue

            def layer(held: Sequence[Tensor], index: int = index, top: bool = top) -> Tensor:
                output, inputs = self._again(x, held)
                return self.objective(output, y) if top else made.asks[index](inputs[index])

            for _ in range(self.inner_steps):
                _clear(optimizers)
                loss = layer(still)
                if loss.requires_grad:  # else all of the layer is frozen
                    loss.backward()
                    _move(optimizers)
            _descend(layer([cut.h for cut in made.cuts]), "the training loss" if top else repr(made.cuts[index].name))
        made.check()
        _clear(optimizers)
        return made.told


@dataclass
class _Pass:
    """One forward pass: its cuts, and per cut the loss of the layer below."""

    loss: Tensor
    cuts: list[Cut]
    asks: dict[int, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    layers: list[LayerStep] = field(default_factory=list)

    def check(self) -> None:
        """Refuse a pass in which no unit was asked for anything."""
        if not self.asks:
            raise ValueError(
                no_gradient(f"something between the output of {self.cuts[-1].name!r} and the training loss")
            )

    @property
    def told(self) -> TargetStep:
        return TargetStep(self.loss.detach(), tuple(self.layers))


def _value(unit: nn.Module, loss: UnitLoss, z: Tensor, target: Tensor) -> Tensor:
    """L of a unit in its own coordinates; a staircase has slope 2 in those of the rules, which the half takes back."""
    if not isinstance(unit, Staircase):
        return loss.value(z, target)
    if not unit.each:
        return loss.value(2 * z - 1, target) / 2
    steps = thresholds(unit.steps)
    return torch.stack([loss.value(2 * (z - step), target) for step in steps]).sum(0) / (2 * len(steps))


def _loss_of(name: str, unit: nn.Module, loss: UnitLoss | None) -> UnitLoss:
    found = unit.rule if loss is None and isinstance(unit, Sign | Staircase) else loss
    if not isinstance(found, UnitLoss):
        raise ValueError(
            f"{name!r} has the rule {found}, which is no loss of a unit; give TargetPropagation(net, loss=SoftHinge()), or "
            "train with the rule itself"
        )
    return found


def _descend(loss: Tensor, what: str) -> None:
    try:
        loss.backward(retain_graph=True)  # a path past the units belongs to several layers
    except NotImplementedError as error:
        raise ValueError(f"below {what}: " + no_gradient("an operation")) from error


def _clear(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)


def _move(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.step()
