"""Make a network smaller without changing its function: capture, interpret, plan, verify, apply.

`small, report = compact(net, example)`. Nothing is kept that does not verify: the removals that made a difference are
found by bisection over layers, taken back, and named in the report.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

from torch import nn

from paring.analysis.alone import alone
from paring.analysis.capture import check_copies, check_layers
from paring.analysis.freeze_weights import freeze_weights, like
from paring.analysis.input_groups import InputGroups
from paring.core import Example, Inputs, plain_net, unwrapped
from paring.core.fresh import fresh, refresh
from paring.core.quantised import in_floats
from paring.core.torch_masks import multiplied_in
from paring.core.unwrap import seen_through
from paring.core.without_cache import caching, caching_as, without_cache
from paring.removal.apply import apply
from paring.removal.choose import Chooser
from paring.removal.fuse import Fused, fuse, fused_copy
from paring.removal.report import Mode, Report
from paring.removal.silence import silence

Wanted = Literal["auto", "module", "graph"]


@alone()
def compact(
    net: nn.Module,
    example: Example,
    *,
    inplace: bool = False,
    verify: bool = True,
    drop_inputs: bool = False,
    mode: Mode | None = None,
    form: Wanted = "auto",
    fuse_norms: bool = False,
    input_groups: InputGroups | None = None,
) -> tuple[nn.Module, Report]:
    """The network without its units that are zero, constant or unread, where that is exact, and the report of it.

    example: an input with the batch first, a tuple of inputs, or a mapping of keyword arguments. inplace: change `net` itself instead of a copy.
    verify: run old and new and take back what differs; without it a size written into the user's forward shows up only
    as an error later. drop_inputs: linear layers stop reading columns that have zero weights only but stay in their
    input, such as inputs of the network or single positions of a flattened map (`SelectLinear`).
    mode: "eval" keeps the function in eval mode, "both" in train mode as well; the default is "both"
    for a network in train mode. Norms of it that are in eval mode (frozen) count as frozen in train mode.
    form: "module" gives the user's own classes with smaller parameters, which their forward has to accept; "graph" the
    captured computation with the sizes in it rewritten (`GraphNet`, same parameter names, any batch size, other sizes
    as in the example); "auto" tries the first, then the second, before anything is taken back. A network that is
    changed in place, or not verified, keeps its own form unless "graph" is asked for.
    fuse_norms: first fuse every BatchNorm into the linear layer or convolution in front of it, where that one alone is
    read by it; an `nn.Identity` stands in its place. The same function in eval mode; training does not go on from there.
    input_groups: layer → m; that layer loses inputs in whole groups of m consecutive ones or not at all, so that an N:M
    pattern of its weights stays one. Of a layer that packs several weights, their names ("lstm.weight_ih_l0").

    Raises `CaptureError` when the network cannot be traced, `GraphFormError` when only the graph form was wanted and
    there is none that verifies, `ValueError` for `inplace` together with "graph", and for `fuse_norms` when train mode
    should stay the same or the network is a `GraphNet`.
    """
    if inplace and form == "graph":
        raise ValueError("inplace=True keeps the network's own modules; use inplace=False for form='graph'")
    given_net = plain_net(net, "compact")
    net = in_floats(given_net, "compact")
    if inplace and net is not given_net:
        raise ValueError(
            "compact(inplace=True) cannot make a quantised network smaller: it takes a copy of it in floats"
        )
    if not inplace:
        net = multiplied_in(net)
    check_layers(net)
    check_copies(net)
    given = dict(input_groups or {})
    weights = {name: given.pop(name) for name, _ in net.named_parameters() if name in given}
    if unknown := sorted(set(given) - {name for name, _ in net.named_modules()}):
        raise ValueError(f"input_groups names {unknown[0]!r}, which is no module of this {type(net).__name__}")
    sizes = {unwrapped(net.get_submodule(name)): size for name, size in given.items()}
    with freeze_weights(net), seen_through(net), without_cache(net):
        groups = {name: sizes[module] for name, module in net.named_modules() if module in sizes} | weights
        small, report = _shrunk(net, Inputs.of(example), inplace, verify, drop_inputs, mode, form, fuse_norms, groups)
    if report.form == "graph" and caching(net):
        report = replace(
            report, notes=(*report.notes, "without the cache that config.use_cache asks for: this form computes none")
        )
    return caching_as(like(small, net), net), report


def _shrunk(
    net: nn.Module,
    example: Inputs,
    inplace: bool,
    verify: bool,
    drop_inputs: bool,
    mode: Mode | None,
    form: Wanted,
    fuse_norms: bool,
    input_groups: InputGroups,
) -> tuple[nn.Module, Report]:
    net = refresh(net) if inplace else fresh(net)
    mode = mode or ("both" if net.training else "eval")
    before = sum(p.numel() for p in net.parameters())
    work, fused = fused_copy(net, example, mode, verify) if fuse_norms else (net, Fused())
    chooser = Chooser(work, example, mode, drop_inputs, input_groups=input_groups)
    done = (
        chooser.graph_form(verify) if form == "graph" else chooser.module_form(verify, form == "auto" and not inplace)
    )
    if done.silenced.names:
        work = silence(copy.deepcopy(work), done.silenced)
    notes = [*fused.notes, *chooser.notes, *done.planner.drift(mode, done.plan, list(done.rolled_back))]
    small: nn.Module
    if done.form == "graph":
        small, size = done.planner.graph(work, done.plan)
        why = f" because of the size in {size}" if size else ""
        notes.append(f"in graph form{why}; it takes {small.takes}")
    else:
        kept = silence(fuse(net, fused.done), done.silenced) if inplace else copy.deepcopy(work)
        small = apply(kept, done.plan)
    after = sum(p.numel() for p in small.parameters())
    rolled_back = {**fused.rolled_back, **done.rolled_back}
    return small, Report(
        done.plan.rows,
        (before, after),
        mode,
        verify,
        rolled_back,
        tuple(notes),
        done.form,
        tuple(fused.done),
        done.silenced.names,
    )
