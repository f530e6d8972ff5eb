"""`attach` puts a method's gates into a network; the `Run` it returns drives them from any training loop.

This sits above `graph`, and not in `core`, because `finish` removes what closed and a probe captures the network.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from paring.core import Attachment, Clock, Gate, Method, attached, gates, is_attached, release, set_attachment, strip
from paring.cost import Cost, CostModel
from paring.gates import live, openness, support
from paring.graph import Report, Wiring, shrink, wiring


class NetworkProbe:
    """Answers a method's questions about the network, capturing it only when asked."""

    def __init__(self, net: nn.Module, example: tuple[Any, ...]) -> None:
        self._net = net
        self._example = example

    @property
    def example(self) -> tuple[Any, ...]:
        """Example positional arguments of the network."""
        return self._example

    @cached_property
    def wiring(self) -> Wiring:
        """Layers of the network and who reads whom."""
        return wiring(self._net, self._example)


def attach(
    net: nn.Module,
    method: Method,
    example: Tensor | tuple[Any, ...],
    *,
    steps: int | None = None,
    epoch_steps: int | None = None,
) -> Run:
    """Put the method's gates into `net`, in place, and return the handle that trains and finishes it.

    Args:
        net: any module; it stays the same object and is called as before.
        method: what the network may lose.
        example: one example batch (a tensor, or a tuple of positional arguments), used to capture the network.
        steps: optimizer steps that training will take, when known; schedules of methods need it.
        epoch_steps: optimizer steps in an epoch, when known.

    Raises:
        TypeError: `net` is no module or `method` no method.
        ValueError: something is attached already, or the method finds no place for its gates. The network is then
            as it was before.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"attach needs an nn.Module, got {type(net).__name__}")
    net = getattr(net, "_orig_mod", net)  # what torch.compile wraps
    if not isinstance(method, Method):
        raise TypeError(f"attach needs a paring method such as paring.L0(...), got {method!r}")
    if is_attached(net) or any(True for _ in gates(net)):
        raise ValueError(
            f"this {type(net).__name__} already has a method attached; use Stack(a, b) for several at once"
        )
    clock = Clock(steps=steps, epoch_steps=epoch_steps)
    probe = NetworkProbe(net, example if isinstance(example, tuple) else (example,))
    set_attachment(net, Attachment(method))
    try:
        method.attach(net, probe)
        return Run(net, method, probe, clock)
    except BaseException:
        strip(net)
        set_attachment(net, None)
        raise


class Run:
    """One network being trained with one method.

    Attributes:
        net: the network, gates included.
        method: the attached method.
        clock: where training stands.
        report: what `finish` removed; None before.
    """

    def __init__(self, net: nn.Module, method: Method, probe: NetworkProbe, clock: Clock) -> None:
        self.net = net
        self.method = method
        self.probe = probe
        self.clock = clock
        self.report: Report | None = None
        self._checked: weakref.ref[torch.optim.Optimizer] | None = None
        method.start(net, clock)

    def parameter_groups(
        self, lr: float, weight_decay: float = 0.0, *, gate_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Optimizer groups: the weights, and the gates with their own learning rate and no weight decay.

        Args:
            lr: learning rate of the weights.
            weight_decay: weight decay of the weights.
            gate_lr: learning rate of all gates; by default each gate class's own multiple of `lr`.
        """
        groups: list[dict[str, Any]] = []
        gate_groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        seen: set[int] = set()
        for _, _, gate in gates(self.net):
            key = (lr * gate.lr_scale if gate_lr is None else gate_lr, weight_decay if gate.decay else 0.0)
            for parameter in gate.parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    gate_groups.setdefault(key, []).append(parameter)
        weights = [p for p in self.net.parameters() if id(p) not in seen]
        if weights:
            groups.append({"params": weights, "lr": lr, "weight_decay": weight_decay, "name": "weights"})
        for number, ((rate, decay), parameters) in enumerate(gate_groups.items()):
            groups.append({"params": parameters, "lr": rate, "weight_decay": decay, "name": f"gates{number or ''}"})
        return groups

    def penalty(self) -> Tensor:
        """Scalar to add to the loss; a constant zero when the method has none."""
        value = self.method.penalty(self.net, self.clock)
        if value is not None:
            return value
        first = next(self.net.parameters(), None)
        return torch.zeros((), device=None if first is None else first.device)

    def step(self, opt: torch.optim.Optimizer) -> None:
        """`before_step(opt)`, `opt.step()`, `after_step(opt)`."""
        self.before_step(opt)
        opt.step()
        self.after_step(opt)

    def before_step(self, opt: torch.optim.Optimizer) -> None:
        """What the method does with the gradients; call it right before `opt.step()`.

        Raises:
            ValueError: the optimizer lacks the gates' parameters.
        """
        if self._checked is None or self._checked() is not opt:
            self._check(opt)
            self._checked = weakref.ref(opt)
        self.method.on_grads(self.net, self.clock)

    def after_step(self, opt: torch.optim.Optimizer) -> None:
        """What the method does after the optimizer moved; advances the clock."""
        clock = self.clock
        self.clock = Clock(clock.step + 1, clock.round, clock.steps, clock.epoch_steps)
        self.method.on_step(self.net, opt, self.clock)

    def _check(self, opt: torch.optim.Optimizer) -> None:
        held = {id(p) for group in opt.param_groups for p in group["params"]}
        lacking = [
            f"{name}.{kind}"
            for name, kind, gate in gates(self.net)
            if any(id(p) not in held for p in gate.parameters())
        ]
        if lacking:
            shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
            raise ValueError(
                f"the optimizer does not hold the parameters of {len(lacking)} gates ({shown}), so they would never move; "
                f"build it after attach, with {type(opt).__name__}(run.parameter_groups(lr=...))"
            )

    def finish(
        self,
        net: nn.Module | None = None,
        *,
        inplace: bool = False,
        drop_inputs: bool | None = None,
        verify: bool = True,
    ) -> nn.Module:
        """The small network: gates multiplied into the weights, stock layers, what closed removed exactly.

        Args:
            net: the network to finish, this run's by default; pass an EMA copy of it to finish that one.
            inplace: turn the network itself into the small one instead of a copy.
            drop_inputs: cut columns of linear layers whose weights are all zero although their input stays: inputs of
                the network, or single positions of a flattened map. Such a layer becomes a `SelectLinear`, the one
                layer of ours in a finished network. By default only when there are gates at "inputs", which ask for it.
            verify: compare the outputs before and after, and roll back any removal that moved them.

        Returns:
            The small network in eval mode. `run.report` says what was removed, kept and why.

        Raises:
            RuntimeError: the network does not compute the same with its gates folded into the weights, because its
                forward uses weights of a gated layer without calling it.
        """
        source = self.net if net is None else getattr(net, "_orig_mod", net)
        attached(source)
        small = source if inplace else copy.deepcopy(source)
        if drop_inputs is None:
            drop_inputs = any(kind == "inputs" for _, kind, _ in gates(small))
        self.method.finish(small)
        small.eval()
        before = [_outputs(small, self.probe.example, grad) for grad in (True, False)]
        release(small)
        set_attachment(small, None)
        after = _outputs(small, self.probe.example, False)
        for outputs in before:
            _same_or_raise(outputs, after, small)
        for parameter in small.parameters():
            parameter.grad = None
        small, self.report = shrink(small, self.probe.example, inplace=True, verify=verify, drop_inputs=drop_inputs)
        return small

    @cached_property
    def _model(self) -> CostModel:
        gated = {id(p) for _, _, gate in gates(self.net) for p in gate.parameters()}
        own = sum(p.numel() for p in self.net.parameters() if id(p) not in gated)
        return CostModel(self.probe.wiring, extra=own - int(CostModel(self.probe.wiring)().parameters))

    def cost(self, ask: Callable[[Gate], Tensor] | None = None) -> Cost:
        """What the network costs, layer by layer.

        Args:
            ask: `paring.gates.expected` or `paring.gates.support`; None counts everything as open (the dense network).

        Raises:
            paring.CaptureError: the network cannot be captured.
        """
        if ask is None:
            return self._model()
        found = openness(self.net, self.probe.wiring, ask)
        return self._model(live(found, self.probe.wiring) if ask is support else found)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_checked": None}

    def state_dict(self) -> dict[str, Any]:
        """Clock and the method's own state; gates are in the network's state dict."""
        return {
            "step": self.clock.step,
            "round": self.clock.round,
            "method": repr(self.method),
            "state": {name: value.clone() for name, value in attached(self.net).state.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            ValueError: the state belongs to another method.
        """
        if state["method"] != repr(self.method):
            raise ValueError(f"this state was saved with {state['method']}, but {self.method!r} is attached")
        self.clock = Clock(state["step"], state["round"], self.clock.steps, self.clock.epoch_steps)
        stored = attached(self.net).state
        stored.clear()
        stored.update({name: value.clone() for name, value in state["state"].items()})


def _outputs(net: nn.Module, arguments: tuple[Any, ...], grad: bool) -> list[Tensor]:
    """Floating-point outputs of the network on the example, with or without recording gradients."""
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(grad):
        found = tree_leaves(net(*arguments))
    return [value.detach() for value in found if isinstance(value, Tensor) and value.is_floating_point()]


def _same_or_raise(before: list[Tensor], after: list[Tensor], net: nn.Module) -> None:
    for old, new in zip(before, after, strict=True):
        scale = max(1.0, float(old.abs().max())) if old.numel() else 1.0
        differ = float((old - new).abs().max()) if old.numel() else 0.0
        if not differ <= 2**10 * torch.finfo(old.dtype).eps * scale:
            raise RuntimeError(
                f"folding the gates into the weights of this {type(net).__name__} would move its output by {differ:.2g}: "
                "its forward uses the weights of a gated layer without calling that layer. Exclude it from the gates "
                "(at='units:!NAME'), or call the layer"
            )
