"""Cut a network while it trains, with everything that has its shapes; and remember what was cut."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paring.analysis.alone import alone
from paring.analysis.capture import untouched_random
from paring.core import Inputs, Refusal, TrainingState, attached, is_attached, unwrapped
from paring.core.fresh import let_go
from paring.removal.slices import Dims
from paring.run.surgery.carry import Carried, Cuts, cut_network, cut_state, shapes_of
from paring.run.surgery.folded import Judged, outputs
from paring.run.surgery.optimizer_memory import check_memory

_REPEATS = 12


def cut_all(net: nn.Module, cuts: Cuts, companions: Iterable[object]) -> None:
    """Cut `net` and its companions alike: optimizers, copies of the network, averages.

    Raises:
        TypeError: an optimizer's state cannot be cut. Nothing was changed then.
        ValueError: a copy has other shapes than the network. Nothing was changed then.
    """
    own = dict(net.named_parameters())
    shapes = {parameter: parameter.shape for parameter in own.values()}
    dims: dict[nn.Parameter, Dims] = {own[name]: kept for name, kept in cuts.kept.items() if name in own}
    companions = list(companions)
    copies = [unwrapped(other) for other in companions if isinstance(other, nn.Module)]
    for copy_ in copies:
        check_copy(net, copy_)
    optimizers = [other for other in companions if isinstance(other, torch.optim.Optimizer)]
    for opt in optimizers:
        check_memory(opt, own.values())
    states = [part for opt in optimizers for part in cut_state(opt, shapes, dims)]
    for state, key, small in states:
        state[key] = small
    for module in (net, *copies):
        cut_network(module, cuts)
        _remember(module, cuts)
    for other in companions:
        if isinstance(other, Carried):
            other.shrink(cuts)
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # what was compiled for the old sizes is compiled anew, without counting as a recompile


def check_copy(net: nn.Module, other: nn.Module) -> None:
    """Refuse a copy that does not look like the network.

    Raises:
        ValueError: names or shapes of parameters and gates differ.
    """
    if shapes_of(net) != shapes_of(other) or not is_attached(other):
        raise ValueError(
            f"this {type(other).__name__} has other parameters than the {type(net).__name__} in training, so it cannot "
            "shrink along with it. Track a copy that was made after attach, and before the network first shrank"
        )


def _remember(net: nn.Module, cuts: Cuts) -> None:
    """Note in the network's attachment which indices of the original tensors are left."""
    state = attached(net).state
    for name, dims in cuts.kept.items():
        known = state.kept.setdefault(name, {})
        for dim, keep in dims.items():
            known[dim] = known[dim][keep] if dim in known else keep
    state.sizes.update(cuts.sizes)
    for layer, reads in cuts.reads.items():
        if reads is None:
            state.reads.pop(layer, None)
        else:
            state.reads[layer] = reads.cpu()


def recall(now: TrainingState, then: TrainingState) -> Cuts:
    """The cuts that lead from what one attachment's state remembers to what another one's does.

    Raises:
        ValueError: there, more is left of some tensor than now.
    """
    kept: dict[str, dict[int, Tensor]] = {}
    for name in sorted({*now.kept, *then.kept}):
        before, after = now.kept.get(name, {}), then.kept.get(name, {})
        for dim in sorted({*before, *after}):
            if dim not in after or (dim in before and not bool(torch.isin(after[dim], before[dim]).all())):
                raise ValueError(
                    f"the network has shrunk further than this state ('{name}' is smaller): load it into a freshly built "
                    "and attached network"
                )
            keep = torch.searchsorted(before[dim], after[dim]) if dim in before else after[dim]
            if dim not in before or len(keep) < len(before[dim]):
                kept.setdefault(name, {})[dim] = keep
    reads = {layer: then.reads.get(layer) for layer in {*now.reads, *then.reads}}
    return Cuts({**kept}, reads, dict(then.sizes))


def put_back(small: Tensor, whole: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """A tensor of the size before any cut: what is left of it, `small`, in its place, and else `whole`.

    Args:
        small: the values now.
        whole: values for what was cut away, of the size before any cut.
        kept: dimension -> indices that are left, as `TrainingState.kept` has them for this tensor.
    """
    index = [kept.get(dim, torch.arange(size)) for dim, size in enumerate(whole.shape)]
    if not index:
        return small
    places = [keep.view(-1, *[1] * (whole.dim() - dim - 1)) for dim, keep in enumerate(index)]
    found = whole.clone()
    found[tuple(place.to(whole.device) for place in places)] = small.to(whole)
    return found


@alone()
def dry_run(net: nn.Module, cuts: Cuts, example: Inputs) -> Refusal | None:
    """None when a cut copy of the network computes what the network does in eval mode; else what is wrong."""
    judged = Judged.of(net, example)
    before = judged.outputs()
    cut_network(judged.net, cuts)
    try:
        after = outputs(judged.net, judged.example, grad=False)
    except (RuntimeError, ValueError, IndexError) as error:
        return Refusal(f"the smaller network fails with {type(error).__name__}: {error}")
    return judged.differs(before, after)


def step_times(net: nn.Module, cuts: Cuts, example: Inputs, batch: int | None) -> tuple[float, float]:
    """Seconds of forward and backward in train mode, before and after the cut: the fastest of several, in turns on copies.

    The fastest, because whatever else the machine does only ever adds time.

    Args:
        net: the network; it is left alone, and so is the random state.
        cuts: what would stay.
        example: example arguments.
        batch: examples in a step; None: as many as the example has.
    """
    old, new = copy.deepcopy(let_go(net)).train(), copy.deepcopy(net).train()
    cut_network(new, cuts)
    inputs = _batched(example, batch, net)
    taken: dict[int, list[float]] = {0: [], 1: []}
    with untouched_random():
        for _ in range(_REPEATS):
            for which, module in enumerate((old, new)):
                taken[which].append(_step_time(module, inputs))
    return min(taken[0]), min(taken[1])


def _step_time(net: nn.Module, inputs: Inputs) -> float:
    device = next(net.parameters()).device
    net.zero_grad(set_to_none=True)
    _wait(device)
    started = time.perf_counter()
    out = [
        v
        for v in pytree.tree_leaves(net(*inputs.args, **inputs.kwargs))
        if isinstance(v, Tensor) and v.is_floating_point()
    ]
    torch.stack([v.float().pow(2).mean() for v in out]).sum().backward()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _batched(example: Inputs, batch: int | None, net: nn.Module) -> Inputs:
    """The example, repeated up to the batch; images in the layout of the network's weights."""
    channels_last = any(
        p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
        for p in net.parameters()
    )

    def laid_out(leaf: Tensor) -> Tensor:
        leaf = leaf.detach()
        return leaf.contiguous(memory_format=torch.channels_last) if channels_last and leaf.dim() == 4 else leaf

    return (example if batch is None else example.cycled(batch)).map(laid_out)
