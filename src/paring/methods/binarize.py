"""Hard-threshold networks: activations of few values, binary weights, or both.

Activations (`paring.hard`) are swapped where they are modules: sign or staircase with a gradient rule (feasible target
propagation, Friesen and Domingos, ICLR 2018, arXiv 1710.11573; straight-through rules; Bi-Real Net's), a learned step (LSQ), or
the saturated ReLU to compare with. Weights become ±1 or ±α per output channel (`paring.gates.BinaryWeights`): the
optimizer moves latent real weights, the network sees their signs. `finish` leaves the signs (times scale) in the weights.

Together with L0 in a Stack, units still close and are removed exactly: Stack(Binarize(...), L0(..., at="units")). Behind a
sign a closed unit is the constant sign(0) = -1, which is folded into its readers' biases (or, in front of a padded
convolution, into one channel of its own, whose weights are then no signs). A gate in front of a sign acts on training
through the rule alone, since sign(z g) = sign(z) for every g > 0.

First and last layers stay real by default, as in nearly all of these papers. Norms and biases always do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from paring.core import At, Clock, Example, Method, Places, Probe, attached, settle_places, validate
from paring.gates import BinaryWeights, Site, put_gate, read_weights, sites_of, weight_of, weight_sites
from paring.hard import GradientRule, LearnedStep, SaturatedReLU, SaturatedSTE, Sign, SoftHinge, Staircase
from paring.hard.swap import activations, functional, swap
from paring.run import Run, attach

Activations = Literal["sign", "staircase", "learned_step", "saturated_relu", "none"]
Weights = Literal["mean", "sign", "none"]


@dataclass(frozen=True)
class Binarize(Method):
    """Swap the activations of a network for hard ones, and its weights for signs.

    Args:
        activations: "sign", "staircase", "learned_step" (LSQ), "saturated_relu", or "none" to leave them.
        weights: "mean" for sign times mean |w| of each output channel (XNOR-Net), "sign" for ±1 (BNN), "none" to leave them.
        rule: gradient of sign and staircase; FTP-SH by default.
        weight_rule: gradient of the weights' sign.
        steps: of a staircase or learned step; 3 are four levels, 2 bits.
        keep_first: leave the weights of the layer that runs first real, unless `at` asks for it by its name.
        keep_last: leave those of the layer that runs last real.
        clip: bring latent weights back into [-1, 1] after every step.
        at: which weights: "weights", or a selection such as "weights:!fc2".
        activations_at: names of the modules to swap, or patterns over them, joined by "|"; empty for every module of the ReLU
            family (ReLU to GELU, SiLU, Hardtanh). Tanh and Sigmoid, which are outputs and gates more often, only by name.

    Raises:
        ValueError: nothing is asked for, or a number is out of its range.
    """

    goal: ClassVar[str | None] = "bits"

    activations: Activations = "sign"
    weights: Weights = "mean"
    rule: GradientRule = field(default_factory=SoftHinge)
    weight_rule: GradientRule = field(default_factory=SaturatedSTE)
    steps: int = 3
    keep_first: bool = True
    keep_last: bool = True
    clip: bool = True
    at: At = Places(("weights:Linear|Conv1d|Conv2d|Conv3d",))  # noqa: RUF009  # a frozen value
    activations_at: str = ""

    def __post_init__(self) -> None:
        settle_places(self, "weights")
        validate.one_of(self, "activations", ("sign", "staircase", "learned_step", "saturated_relu", "none"))
        validate.one_of(self, "weights", ("mean", "sign", "none"))
        if self.activations == self.weights == "none":
            raise ValueError(
                "Binarize(activations='none', weights='none') would change nothing: give one of them, or train Dense()"
            )
        validate.whole_number(self, "steps")
        for name in ("rule", "weight_rule"):
            if not isinstance(getattr(self, name), GradientRule):
                raise ValueError(
                    f"Binarize({name}={getattr(self, name)!r}): a rule is a value such as SoftHinge(), see paring.hard"
                )

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = self._sites(net, probe) if self.weights != "none" else ()
        old = self._activations(net, probe) if self.activations != "none" else {}
        first = next(net.parameters(), None)
        swap(net, old, lambda _: self._unit(first))
        modules = dict(net.named_modules())
        for site in found:
            gate = BinaryWeights(weight_of(net, site), mean=self.weights == "mean", rule=self.weight_rule)
            put_gate(modules, site, gate)
        attached(net).notes[self] = found

    def on_start(self, net: nn.Module, clock: Clock) -> None:
        read_weights(net, sites_of(net, self))

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        found = sites_of(net, self)
        if self.clip:
            with torch.no_grad():
                for site in found:
                    weight_of(net, site).clamp_(-1.0, 1.0)
        read_weights(net, found)

    def finish(self, net: nn.Module) -> None:
        read_weights(net, sites_of(net, self))

    def swapped(self, net: nn.Module) -> nn.Module:
        """`net` itself with its activations swapped and nothing else: what a network that `finish` left is made of.

        `paring.load` does so by itself, with the default rule; for going on with another rule, give it a factory that swaps:
        `paring.load(lambda: method.swapped(MyNet()), path)`.

        Raises:
            ValueError: no module is found.
        """
        if self.activations != "none":
            first = next(net.parameters(), None)
            swap(net, activations(net, self.activations_at), lambda _: self._unit(first))
        return net

    def _sites(self, net: nn.Module, probe: Probe) -> tuple[Site, ...]:
        found = weight_sites(net, probe, self.at)
        places = Places.of(self.at).places
        order = [layer.name for layer in probe.wiring.layers if layer.kind != "embedding"]
        real = {*order[: int(self.keep_first)], *order[len(order) - int(self.keep_last) :]}
        left = tuple(s for s in found if s.layer not in real or any(place.names(s.layer) for place in places))
        owners = [id(getattr(net.get_submodule(name), "weight", None)) for name in order]
        shared = [name for name, owner in zip(order, owners, strict=True) if owners.count(owner) > 1]
        if not left and not set(shared) <= real:
            raise ValueError(
                f"no place for gates at {self.at!r} in this {type(net).__name__}: {', '.join(shared[:5])} share their weights, "
                "which no gate can show to each of them, and the first and the last layer stay real"
            )
        if not left:
            raise ValueError(
                f"no place for gates at {self.at!r} in this {type(net).__name__}: the first and the last layer "
                f"({', '.join(sorted(real))}) stay real; give keep_first=False or keep_last=False"
            )
        return left

    def _activations(self, net: nn.Module, probe: Probe) -> dict[str, nn.Module]:
        if not self.activations_at and (calls := functional(net, probe.example)):
            shown = ", ".join(f"{name} in {f'{path!r}' if path else 'its own forward'}" for path, name in calls.items())
            raise ValueError(
                f"this {type(net).__name__} calls activations that are no modules ({shown}), and a call cannot be "
                "swapped: make it a module (self.act = nn.ReLU() in __init__, self.act(x) in forward), say which "
                "modules to swap (activations_at='NAME|NAME'), or leave them with activations='none'"
            )
        return activations(net, self.activations_at)

    def _unit(self, like: nn.Parameter | None) -> nn.Module:
        if self.activations == "sign":
            return Sign(self.rule)
        if self.activations == "staircase":
            return Staircase(self.steps, self.rule)
        if self.activations == "saturated_relu":
            return SaturatedReLU()
        return LearnedStep(
            self.steps, device=None if like is None else like.device, dtype=None if like is None else like.dtype
        )


def binarize(
    net: nn.Module,
    example: Example,
    activations: Activations = "sign",
    weights: Weights = "mean",
    **settings: Any,
) -> Run:
    """Swap the activations and weights of `net`, in place: `attach(net, Binarize(...), example)` in one call.

    Args:
        net: any module; first and last layer keep real weights by default.
        example: one example batch, used to capture the network; see `attach`.
        activations: see `Binarize`.
        weights: see `Binarize`.
        settings: the others of `Binarize`, such as `rule=SaturatedSTE()`.

    Returns:
        The handle that trains and finishes it.

    Raises:
        ValueError: see `Binarize` and `attach`; the network is then as it was before.
    """
    return attach(net, Binarize(activations, weights, **settings), example)
