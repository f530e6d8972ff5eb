"""`attach` puts a method's gates into a network.

This sits above `analysis` and `removal`, and not in `core`, because `finish` removes what closed and a probe captures the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from paring.core import (
    Attachment,
    Clock,
    Example,
    Inputs,
    Method,
    gates,
    is_attached,
    set_attachment,
    strip,
    unwrapped,
    wrappers,
)
from paring.core.fresh import let_go
from paring.run.distributed.sharded import refuse_sharded
from paring.run.probe import NetworkProbe
from paring.run.run import Run
from paring.run.step_hooks import bare_optimizer


def attach(
    net: nn.Module,
    method: Method,
    example: Example,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    steps: int | None = None,
    epoch_steps: int | None = None,
    batch: int | None = None,
    loss: Callable[[Callable[..., Any]], Tensor] | None = None,
    step: int = 0,
) -> Run:
    """Put the method's gates into `net`, in place, and return the handle that trains and finishes it.

    Args:
        net: any module; it stays the same object and is called as before. Of a wrapper (`torch.compile`, DataParallel, ...) the
            network inside, which is `run.net`.
        method: what the network may lose.
        example: one example batch (a tensor, a tuple of positional arguments or a mapping of keyword arguments), used to
            capture the network.
        optimizer: the optimizer of the weights, made before. Then the training loop stays as it is: the gates join its
            groups, and the penalty's gradient, the method and the clock follow its own steps; see `Run.follow`, which takes
            one that is made later. Without it, the loop calls `run.penalty` and `run.step`.
        steps: optimizer steps that training will take, when known; schedules of methods need it.
        epoch_steps: optimizer steps in an epoch, when known.
        batch: examples in a training step, when known; `Shrink` times steps of this size.
        loss: scalar loss of a network on a batch of training data, for methods that score weights before training:
            `loss=lambda net: F.cross_entropy(net(x), y)`.
        step: optimizer steps of the training that lie behind already, when it begins at a rewind point.

    Raises:
        TypeError: `net` is no module, `method` no method or `optimizer` no optimizer, or one that cannot be followed.
        ValueError: something is attached already, the network is under `fully_shard` already (attach comes first), or
            the method finds no place for its gates, or they would train inside a DistributedDataParallel that does not
            know them, or the optimizer holds nothing of the network. The network is then as it was before.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"attach needs an nn.Module, got {type(net).__name__}")
    given, net = net, let_go(unwrapped(net))
    if not isinstance(method, Method):
        raise TypeError(f"attach needs a paring method such as paring.L0(...), got {method!r}")
    if is_attached(net) or any(True for _ in gates(net)):
        raise ValueError(
            f"this {type(net).__name__} already has a method attached; use Stack(a, b) for several at once"
        )
    opt = None if optimizer is None else bare_optimizer(optimizer)
    refuse_sharded(given, "attach")
    clock = Clock(step, steps=steps, epoch_steps=epoch_steps)
    probe = NetworkProbe(net, Inputs.of(example), loss)
    set_attachment(net, Attachment(method))
    known = {id(p) for p in net.parameters()}
    before = [p for p in net.parameters() if p.requires_grad]
    children = [(module, dict(module._modules)) for module in net.modules()]
    try:
        method.attach(net, probe)
        _check_wrappers(given, before)
        added = [name for name, p in net.named_parameters() if id(p) not in known]
        run = Run(net, method, probe, clock, batch, added)
        if opt is not None:
            run.follow(opt)
        return run
    except BaseException:
        strip(net)
        for module, parts in children:  # modules that the method had swapped
            module._modules = parts
        set_attachment(net, None)
        raise


def _check_wrappers(given: nn.Module, before: list[nn.Parameter]) -> None:
    """Refuse a DistributedDataParallel that was made before gates with parameters came in: it would not average them.

    Raises:
        ValueError: there is one, and the trained parameters are other ones than before.
    """
    known = {id(parameter) for parameter in before}
    now = {id(parameter) for parameter in unwrapped(given).parameters() if parameter.requires_grad}
    if now != known and any(isinstance(part, DistributedDataParallel) for part in wrappers(given)):
        raise ValueError(
            "this network is wrapped in DistributedDataParallel already, which would leave the gradients of the gates as they "
            "are in each process. Attach to the network first, and let the run wrap it: "
            "ddp = run.parallel(lambda net: DistributedDataParallel(net))"
        )
