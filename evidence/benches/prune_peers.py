"""Other ways to make a trained network smaller, for `python -m evidence bench prune`: each gives the network right after the cut.

Torch-Pruning is used as its documents say: one shot, global ranking, the ratio found by bisection, since it knows no budget.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

import paring as pr
from evidence.benches.bench_nets import Attention
from evidence.benches.prune_subjects import Subject, classify
from evidence.benches.tools import lenient, module
from paring.core import Inputs, release
from paring.pruning import Magnitude, Search
from paring.pruning.gated import GatedCopy
from paring.removal import compact

BATCHES = 8
_CLOSE = 0.005  # of the dense network: how far below the asked MACs a bisection may end
Cut = Callable[[Subject, nn.Module, float], nn.Module]


def macs(net: nn.Module, subject: Subject) -> int:
    """Multiply-accumulates of one example."""
    found = pr.report(net, subject.example()).total["macs"]
    assert found is not None
    return found


def ours(search: Search, multiple_of: int = 1) -> Cut:
    """`pr.prune` without training."""

    def cut(subject: Subject, net: nn.Module, share: float) -> nn.Module:
        calibration = list(islice(subject.parts().train, BATCHES))
        small, _ = pr.prune(
            net, calibration, classify, to=pr.Budget(macs=share, multiple_of=multiple_of), epochs=0, search=search
        )
        return small

    return cut


def uniform(subject: Subject, net: nn.Module, share: float) -> nn.Module:
    """The same share of every group, the smallest by the norm of their weights."""
    gated = GatedCopy.of(net, Inputs.of(subject.example()), "units")
    norms = Magnitude().look(gated, [], classify)

    def mask(kept: float) -> Tensor:
        parts = []
        for part in norms.split(gated.sizes):
            stays = torch.zeros(len(part), dtype=torch.bool)
            stays[part.argsort(descending=True)[: max(round(kept * len(part)), 1)]] = True
            parts.append(stays)
        return torch.cat(parts)

    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if gated.shares(mask(middle))["macs"] <= share else (low, middle)
    gated.set(mask(low))
    release(gated.net)
    return compact(gated.net, subject.example())[0]


def torch_pruning(importance: str) -> Cut:
    """Torch-Pruning with one of its importances: "GroupMagnitude", "GroupTaylor" or "GroupHessian"."""

    def cut(subject: Subject, net: nn.Module, share: float) -> nn.Module:
        dense = macs(net, subject)
        return bisected(
            lambda ratio: _pruned(subject, copy.deepcopy(net), importance, ratio),
            lambda small: macs(small, subject) / dense,
            share,
        )

    return cut


def bisected(cut: Callable[[float], nn.Module], cost: Callable[[nn.Module], float], share: float) -> nn.Module:
    """The network by the smallest pruning ratio that is found whose cost is at most this share.

    Raises:
        RuntimeError: no ratio comes down to it.
    """
    low, high, best = 0.0, 1.0, None
    state = torch.get_rng_state()
    for _ in range(14):
        torch.set_rng_state(state)  # every ratio is judged on the same batches
        middle = (low + high) / 2
        small = cut(middle)
        got = cost(small)
        if got <= share:
            best, high = small, middle
            if got > share - _CLOSE:
                break
        else:
            low = middle
    if best is None:
        raise RuntimeError(f"Torch-Pruning does not reach {share:.0%} of the MACs")
    return best


def _pruned(subject: Subject, net: nn.Module, importance: str, ratio: float) -> nn.Module:
    tp = module("torch_pruning", "Torch-Pruning")
    judge = getattr(tp.importance, f"{importance}Importance")()
    attentions = [one for one in net.modules() if isinstance(one, Attention)]
    heads = {layer: one.heads for one in attentions for layer in (one.q, one.k, one.v)}
    with lenient():
        pruner = tp.pruner.BasePruner(
            net,
            subject.example(),
            importance=judge,
            global_pruning=True,
            pruning_ratio=ratio,
            max_pruning_ratio=0.95,
            ignored_layers=_ignored(net, attentions),
            num_heads=heads,
            prune_num_heads=bool(heads),
            prune_head_dims=not heads,
            head_pruning_ratio=ratio,
        )
    if importance != "GroupMagnitude":
        _gradients(subject, net, judge, hessian=importance == "GroupHessian")
    with lenient():
        for group in pruner.step(interactive=True):
            group.prune()
    for one in attentions:
        one.heads = one.q.out_features // one.head
    net.zero_grad()
    return net


def _ignored(net: nn.Module, attentions: Sequence[Attention]) -> list[nn.Module]:
    """The classifier, and in a transformer what writes the residual stream: what ours leaves alone there, too."""
    last = net.get_submodule("fc")
    if not attentions:
        return [last]
    inner = {layer for one in attentions for layer in (one.q, one.k, one.v)}
    inner |= {layer for name, layer in net.named_modules() if name.endswith("fc1")}
    return [
        m
        for m in net.modules()
        if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding | nn.LayerNorm) and m not in inner
    ]


def _gradients(subject: Subject, net: nn.Module, judge: Any, *, hessian: bool) -> None:
    """What its Taylor and Hessian importances read: gradients of some batches, or those of single examples."""
    net.eval()
    net.zero_grad()
    for x, y in islice(subject.parts().train, BATCHES):
        if not hessian:
            classify(net, (x, y)).backward()
            continue
        for row in range(0, min(len(x), 16)):
            net.zero_grad()
            classify(net, (x[row : row + 1], y[row : row + 1])).backward()
            judge.accumulate_grad(net)


def reset(net: nn.Module) -> nn.Module:
    """The same network, freshly initialised."""
    net = copy.deepcopy(net)
    for one in net.modules():
        if hasattr(one, "reset_parameters"):
            one.reset_parameters()  # type: ignore[operator]
    return net
