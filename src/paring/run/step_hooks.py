"""A run that follows an optimizer's own steps, so that the training loop stays as it is.

torch calls a hook right before and right after an optimizer steps. Before it, once the loop has averaged, unscaled and
clipped its gradients, comes what the method does with them; after it, what the method does with the network. A step that a
gradient scaler leaves out is none: torch does not call it, or says so to an optimizer that unscales by itself.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from paring.run.optimizer_groups import GateGroups

_WRAPPERS = (  # (module, class, where the optimizer is in it); looked up, so that nothing has to be installed or loaded
    ("accelerate.optimizer", "AcceleratedOptimizer", "optimizer"),
    ("lightning.pytorch.core.optimizer", "LightningOptimizer", "_optimizer"),
    ("pytorch_lightning.core.optimizer", "LightningOptimizer", "_optimizer"),
    ("lightning.fabric.wrappers", "_FabricOptimizer", "_optimizer"),
    ("lightning_fabric.wrappers", "_FabricOptimizer", "_optimizer"),
)


def bare_optimizer(given: Any) -> torch.optim.Optimizer:
    """The optimizer inside the wrappers that accelerate and Lightning put around it.

    Raises:
        TypeError: it is no optimizer, or one that moves in another way than a single step.
    """
    found = given
    while wrapper := next((leaf for module, name, leaf in _WRAPPERS if _is(found, module, name)), None):
        found = getattr(found, wrapper)
    if not isinstance(found, torch.optim.Optimizer):
        raise TypeError(f"a run follows a torch.optim.Optimizer, not {type(given).__name__}")
    if isinstance(found, torch.optim.LBFGS):
        raise TypeError(_MANY.format(name="LBFGS"))
    return found


def _is(value: object, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


_MANY = (
    "{name} computes the loss several times in one step, and a method acts once in a step. Use another optimizer, or leave "
    "optimizer=... out and call run.before_step(opt) and run.after_step(opt) around your own step"
)

_STEP = ("wrapper", torch.optim.Optimizer.__module__)


class StepHooks:
    """Hooks on one optimizer.

    Args:
        net: the network.
        opt: the optimizer.
        before: what to do once the gradients are there, and nothing has moved.
        after: what to do after a real step.
    """

    def __init__(
        self,
        net: nn.Module,
        opt: torch.optim.Optimizer,
        before: Callable[[torch.optim.Optimizer], None],
        after: Callable[[torch.optim.Optimizer], None],
    ) -> None:
        self._opt = weakref.ref(opt)
        self._before, self._after = before, after
        self._groups = GateGroups(net)
        self._frame: FrameType | None = None
        self._ready = self._skipped = False
        apart: Any = torch.compiler.disable  # a step that is compiled leaves them as they are
        self._handles = [opt.register_step_pre_hook(apart(self._begin)), opt.register_step_post_hook(apart(self._end))]

    def follows(self, opt: object) -> bool:
        """Whether it is this optimizer."""
        return self._opt() is opt

    def stop(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _begin(
        self, opt: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the optimizer's step, or that of a class that it derives from and calls."""
        if self._within():
            return None
        self._frame = _step_frame() if _calls_another(type(opt)) else None
        self._groups.merge(opt)  # a step that raised has left them apart
        if "grad_scaler" in kwargs:
            raise RuntimeError(
                f"{type(opt).__name__} unscales gradients within its step by the scaler that it is given, so nothing can be added to "
                "them before. Call scaler.unscale_(opt) and opt.step() yourself, or use another optimizer"
            )
        found: Tensor | None = getattr(opt, "found_inf", None)
        self._skipped, self._ready = found is not None and bool(found.item()), False
        if self._skipped:
            return None
        closure = kwargs["closure"] if "closure" in kwargs else args[1] if len(args) > 1 else None
        if closure is None:
            self._prepare(opt)
            return None
        if "closure" in kwargs:
            return args, kwargs | {"closure": self._charged(opt, closure)}
        return (args[0], self._charged(opt, closure), *args[2:]), kwargs

    def _charged(self, opt: torch.optim.Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The loop's closure, with what the method does to the gradients that it leaves."""

        def evaluated() -> Any:
            if self._ready:
                raise RuntimeError(_MANY.format(name=type(opt).__name__))
            loss = closure()
            self._prepare(opt)
            return loss

        return evaluated

    @torch.no_grad()
    def _prepare(self, opt: torch.optim.Optimizer) -> None:
        scale: Tensor | None = getattr(opt, "grad_scale", None)
        if scale is not None:  # here, and not in its step: a method reads and adds true gradients
            for parameter in (p for group in opt.param_groups for p in group["params"]):
                if parameter.grad is not None:
                    parameter.grad.div_(scale.to(parameter.grad.device))
            opt.grad_scale = None  # type: ignore[attr-defined]
        self._before(opt)
        self._groups.split(opt)
        self._ready = True

    def _end(self, opt: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._frame is not None and _step_frame() is not self._frame:
            return
        self._frame = None
        self._groups.merge(opt)
        if self._skipped:
            return
        if not self._ready:
            raise RuntimeError(
                f"{type(opt).__name__}.step was given a closure and did not call it, so there were no gradients to act on. Compute them "
                "before, and call opt.step()"
            )
        self._after(opt)

    def _within(self) -> bool:
        """Whether this is called inside the step that is going on already."""
        frame = sys._getframe(1) if self._frame is not None else None
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None


def _calls_another(kind: type) -> bool:
    """Whether the step of this class of optimizers may call that of another one, which has hooks too."""
    return sum(hasattr(vars(one).get("step"), "hooked") for one in kind.__mro__) > 1


def _step_frame() -> FrameType | None:
    """The innermost step around this hook, as torch calls it with hooks."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (frame.f_code.co_name, frame.f_globals.get("__name__")) != _STEP:
        frame = frame.f_back
    return frame
