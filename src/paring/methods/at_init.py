"""Pruning at initialisation: score all weights once, before training, and train what stays.

    snip       |w dL/dw|                    Lee, Ajanthan, Torr 2019
    grasp      w (H g), logits over 200     Wang, Zhang, Grosse 2020
    synflow    |w dR/d|w||, in 100 rounds   Tanaka et al. 2020; needs no data
    magnitude  |w|
    random     uniform numbers: the control

Scores of the loss come from one batch of training data (`attach(..., loss=...)`; `fit` gives a class-balanced one).
Of several processes the first one scores for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from paring import select
from paring.core import At, Clock, Method, Places, Probe, attached, settle_places, validate
from paring.gates import Site, clear_closed, freeze_masks, mask_of, masks_of, put_masks, set_masks, sites_of, weights_of
from paring.methods.chosen import chosen

_SCORES = ("snip", "grasp", "synflow", "magnitude", "random")
_ROUNDS = {"synflow": 100}


@dataclass(frozen=True)
class AtInit(Method):
    """Pruning before training.

    Args:
        score: which weights matter, see above.
        density: share of the weights (with a structure, of its pieces) that stays, in (0, 1].
        at: which weights: "weights", a selection such as "weights:!fc2", or several of them; see `paring.core.places`.
        allocation: how the layers share the density: `select.Global()` as in the papers; with "random" an allocation such as
            `select.ErdosRenyi()` or `select.Given(...)` is the control that the others have to beat.
        structure: what is kept or closed together.
        iterations: how often to score and prune on the way to the density, by the same factor each time; None: 100 for
            "synflow", once for the others.
        temperature: what "grasp" divides the logits by (200 in its code).
        seed: of random scores.

    Raises:
        ValueError: an unknown score, or a number out of its range.
    """

    goal: ClassVar[str | None] = "sparse"

    score: Literal["snip", "grasp", "synflow", "magnitude", "random"] = "snip"
    density: float = 0.1
    at: At = Places(("weights",))  # noqa: RUF009  # a frozen value
    allocation: select.Allocation = select.Global()  # noqa: RUF009  # a frozen value
    structure: select.Structure = select.Weights()  # noqa: RUF009  # a frozen value
    iterations: int | None = None
    temperature: float = 200.0
    seed: int = 0

    def __post_init__(self) -> None:
        settle_places(self, "weights")
        validate.one_of(self, "score", _SCORES)
        validate.within(self, "(0, 1]", "density")
        if self.iterations is not None:
            validate.whole_number(self, "iterations")
        self.structure.check(f"AtInit(density={self.density})", self.density)
        validate.positive(self, "temperature")

    @property
    def trains_ticket(self) -> bool:
        return True

    def attach(self, net: nn.Module, probe: Probe) -> None:
        found = put_masks(net, probe, self.at, self.structure)
        attached(net).notes[self] = found
        set_masks(net, found, probe.agree(lambda: self._masks(net, probe, found)))
        freeze_masks(net, found)
        clear_closed(net, found)

    def _masks(self, net: nn.Module, probe: Probe, found: tuple[Site, ...]) -> dict[str, Tensor]:
        rounds = self.iterations or _ROUNDS.get(self.score, 1)
        for number in range(1, rounds + 1):
            scores = self._scores(net, probe, found)
            for site in found:  # what is closed stays closed
                scores[site.layer] = scores[site.layer].double().masked_fill(~mask_of(net, site).mask, float("-inf"))
            density = self.density ** (number / rounds)
            set_masks(net, found, chosen(net, found, scores, density, self.allocation, self.structure))
        return {layer: mask.cpu() for layer, mask in masks_of(net, found).items()}

    def _scores(self, net: nn.Module, probe: Probe, found: tuple[Site, ...]) -> dict[str, Tensor]:
        layers = [site.layer for site in found]
        names = [site.parameter for site in found]
        if self.score == "magnitude":
            return select.magnitude(weights_of(net, found))
        if self.score == "random":
            return select.random(weights_of(net, found), torch.Generator().manual_seed(self.seed))
        if self.score == "synflow":
            scores = select.synflow(net, names, probe.example.args, probe.example.kwargs)
        elif self.score == "snip":
            scores = select.snip(net, names, probe.loss)
        else:
            scores = select.grasp(net, names, lambda copy_: probe.loss(_cooler(copy_, self.temperature)))
        return dict(zip(layers, scores.values(), strict=True))

    @property
    def needs_training(self) -> bool:
        return False

    def on_step(self, net: nn.Module, opt: torch.optim.Optimizer, clock: Clock) -> None:
        clear_closed(net, sites_of(net, self))


def _cooler(net: nn.Module, temperature: float) -> Callable[..., Tensor]:
    def divided(*args: Any) -> Tensor:
        logits: Tensor = net(*args)
        return logits / temperature

    return divided
