"""The `Run` that `attach` returns: it drives one network's method from any training loop."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paring.core import Clock, Gate, Method, TrainingState, attached, in_steps, is_attached, short_repr, unwrapped
from paring.core.norm_statistics import advance_statistics, restore_momenta, set_momenta
from paring.core.shared_gate import SharedGate
from paring.cost import Cost
from paring.gates import live, openness, support
from paring.removal import Report
from paring.run.conditional import conditional
from paring.run.distributed.parallel import Parallel, is_first
from paring.run.distributed.sharded import refuse_sharded, whole
from paring.run.finish import finished
from paring.run.followed import Loop
from paring.run.log_values import log_values
from paring.run.optimizer_groups import add_parameters, check_groups, optimizer_groups
from paring.run.probe import NetworkProbe
from paring.run.rewind_point import Point
from paring.run.saved import CUT_FIELDS, after_cuts, checked, packed, unpacked
from paring.run.shrinking import Shrinking
from paring.run.step_hooks import StepHooks, bare_optimizer
from paring.run.surgery.carry import Carried
from paring.run.surgery.live_cut import check_copy, cut_all, recall
from paring.run.surgery.optimizer_memory import forget


class Run:
    """One network being trained with one method.

    Attributes:
        net: the network, gates included.
        method: the attached method.
        report: what `finish` removed; None before.
    """

    def __init__(
        self,
        net: nn.Module,
        method: Method,
        probe: NetworkProbe,
        clock: Clock,
        batch: int | None = None,
        added: Iterable[str] = (),
    ) -> None:
        self.net = net
        self.method = method
        self.probe = probe
        self.clock = clock
        self.report: Report | None = None
        self._shrinking = Shrinking(net, method, probe, batch)
        self._checked: weakref.ref[torch.optim.Optimizer] | None = None
        self._loop = Loop(begun=clock)
        self._added = tuple(added)
        self._logs: list[tuple[Callable[[dict[str, float], int], object], int]] = []
        self._hooks: StepHooks | None = None
        self._point = Point()
        self._shrinking.companions.append(self._point)
        attached(net).memory = self
        method.on_start(net, clock)
        self._keep_point()

    def parameter_groups(
        self, lr: float, weight_decay: float = 0.0, *, gate_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Optimizer groups: the weights, and the gates with their own learning rate and no weight decay.

        Args:
            lr: learning rate of the weights.
            weight_decay: weight decay of the weights.
            gate_lr: learning rate of all gates; by default each gate class's own multiple of `lr`.
        """
        return optimizer_groups(self.net, lr, weight_decay, gate_lr)

    @property
    def clock(self) -> Clock:
        """Where training stands."""
        return self._clock

    @clock.setter
    def clock(self, value: Clock) -> None:
        if not isinstance(value, Clock):
            raise TypeError(f"run.clock is a paring.core.Clock, not {value!r}")
        self._clock = value

    @property
    def shared_gates(self) -> list[Gate]:
        """Gates that act in several layers.

        FSDP2 wants each parameter in one place: `fully_shard` each of these first, then the blocks, then the network.
        """
        return list(dict.fromkeys(gate for m in self.net.modules() if isinstance(m, SharedGate) for gate in m.gates()))

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Let every step of this optimizer be one of this run; `attach(..., optimizer=...)` does it at once.

        For optimizers that are made later: after `fully_shard`, in a trainer, anew for a next round. Right before each
        step, after the loop's accumulation, unscaling and clipping, the gradient of the penalty is added (so it is not
        clipped) and the method acts on the gradients; right after it the method acts on the network. A step that a
        GradScaler skips does not count. A closure may be given to the step if it is called once.

        The gates' parameters join the groups of the weights that they multiply, if the optimizer does not have them
        yet. They step with their own multiple of the learning rate that those weights have then (so any scheduler is
        right, made before or after), and without weight decay, but for gates that want it. Gates in groups that
        `parameter_groups` made keep the learning rate of those.

        Args:
            optimizer: of the weights; wrappers of accelerate and Lightning are seen through. Of several, the one that
                steps first. One that was followed before is left.

        Raises:
            TypeError: it is no optimizer, or one that computes the loss several times in a step (LBFGS).
            ValueError: it holds no parameter of this network.
        """
        opt = bare_optimizer(optimizer)
        if self._hooks is not None and self._hooks.follows(opt):
            return
        add_parameters(self.net, opt, self._added)
        if self._hooks is not None:
            self._hooks.stop()
        self._loop.follows = self._loop.read = True
        self._hooks = StepHooks(self.net, opt, self._before, self._after)

    def penalty(self) -> Tensor:
        """Scalar to add to the loss; a constant zero when the method has none.

        When the run follows an optimizer its gradient is added there, so this is the number alone, without a graph: a
        loss may hold it, and it counts once.
        """
        self._loop.read = True
        value = self._penalty()
        if value is not None:
            return value if self._hooks is None else value.detach()
        first = next(self.net.parameters(), None)
        return torch.zeros((), device=None if first is None else first.device)

    def _penalty(self) -> Tensor | None:
        with whole(self.net, weights=self.method.reads_weights):
            return self.method.penalty(self.net, self.clock)

    def step(self, opt: torch.optim.Optimizer) -> None:
        """`before_step(opt)`, `opt.step()`, `after_step(opt)`; just `opt.step()` where the run follows this optimizer."""
        self.before_step(opt)
        opt.step()
        self.after_step(opt)

    def _follows(self, opt: torch.optim.Optimizer) -> bool:
        """Whether this optimizer's own steps are counted already.

        Raises:
            ValueError: those of another one are.
        """
        if self._hooks is None:
            return False
        if not self._hooks.follows(bare_optimizer(opt)):
            raise ValueError(
                f"this run follows the steps of another optimizer, not of this {type(opt).__name__}: call run.follow(opt) when a new one "
                "takes over, or opt.step() for one more beside it"
            )
        return True

    def before_step(self, opt: torch.optim.Optimizer) -> None:
        """What the method does with the gradients; call it right before `opt.step()`.

        Nothing, where the run follows this optimizer.

        Raises:
            ValueError: the optimizer lacks the gates' parameters, or the network is sharded and the method cannot train
                it so (RigL, SET), or the run follows another optimizer.
        """
        if not self._follows(opt):
            self._before(opt)

    def _before(self, opt: torch.optim.Optimizer) -> None:
        if self._checked is None:  # what was loaded, or came from another process, after attach counts
            self._keep_point(buffers=False)
        if self._checked is None or self._checked() is not opt:
            check_groups(self.net, opt)
            if self.method.needs_whole:
                refuse_sharded(self.net, str(self.method), "Train it under DistributedDataParallel")
            self._checked = weakref.ref(opt)
        if self._hooks is not None:
            self._charge()
        self.method.on_grads(self.net, self.clock)

    def _charge(self) -> None:
        """Add the penalty's gradient to the gradients, past all hooks that wait for those of the loss."""
        with torch.enable_grad():
            value = self._penalty()
        if value is None or not value.requires_grad:
            return
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        for parameter, grad in zip(parameters, torch.autograd.grad(value, parameters, allow_unused=True), strict=True):
            if grad is not None:
                parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)

    def after_step(self, opt: torch.optim.Optimizer) -> None:
        """What the method does after the optimizer moved; advances the clock.

        Nothing, where the run follows this optimizer.
        """
        if not self._follows(opt):
            self._after(opt)

    def _after(self, opt: torch.optim.Optimizer) -> None:
        clock = self.clock
        self._loop.stepped = True
        self.clock = Clock(clock.step + 1, clock.round, clock.steps, clock.epoch_steps)
        advance_statistics(self.net)
        with whole(self.net, weights=self.method.reads_weights, write=True):
            self.method.on_step(self.net, opt, self.clock)
        self._keep_point()
        if self._point.values is not None and self.method.goes_back(self.net, self.clock):
            with whole(self.net, write=True):
                self._point.restore(self.net)
            self._shrinking.reset(opt)
            self._point.values = None
        removal = self.method.removal(self.net, self.clock)
        if removal is not None:
            self._shrinking.look(opt, removal, self.clock.step)
        self._log()

    def next_round(self, opt: torch.optim.Optimizer) -> bool:
        """Begin the method's next round, now that this one is over; False when it was the last.

        The method decides what stays, weights go back to the rewind point if it says so, and the optimizer forgets its
        state. A loop of one's own is `while True: train(); if not run.next_round(opt): break`, with learning rates set
        by `run.schedule_step`; an average of the weights has to be begun anew.

        Raises:
            ValueError: weights should go back, but the first round was shorter than the rewind point.
        """
        clock = self.clock
        if clock.round + 1 >= self.method.rounds:
            return False
        following = Clock(0, clock.round + 1, clock.steps, clock.epoch_steps)
        back = self.method.begin(following)
        if back.weights and self.point is None:
            raise ValueError(
                f"weights should go back to step {self.method.point(clock)}, but the first round ended at step {clock.step}"
            )
        self.clock = Clock(back.step, following.round, clock.steps, clock.epoch_steps)
        with whole(self.net, write=True):
            self.method.on_round(self.net, clock)
            if back.weights:
                self._point.restore(self.net)
            self.method.on_start(self.net, self.clock)
        forget(opt)
        return True

    def on_log(self, log: Callable[[dict[str, float], int], object], *, every: int = 100) -> None:
        """Call `log(values, step)` every so many steps, with what happens to the network; loggers take it as it is.

        The values, by name: "paring/round", "paring/parameters" (of the network as it is now, gates included),
        "paring/cuts" (made so far), "paring/penalty"; of the dense network's cost the share that stays if training stopped
        now, "paring/support_parameters" and "paring/support_macs", and that is expected while gates are drawn,
        "paring/expected_parameters" and "paring/expected_macs" (none of the four where the network cannot be captured); and
        "paring/multiplier_parameters", ... of a budget. The step counts those of earlier rounds.

        Args:
            log: called in the first process only, where there are several: `mlflow.log_metrics`, `wandb.log`, ...
            every: optimizer steps between two calls.

        Raises:
            ValueError: `every` is no positive whole number.
        """
        in_steps("on_log(every=...)", every, None)
        self._logs.append((log, every))

    def _log(self) -> None:
        clock, due = self.clock, [log for log, every in self._logs if self.clock.step % every == 0]
        if due:
            with torch.no_grad():
                penalty = self._penalty()
            values = log_values(self.net, clock, self.shrinks, penalty, self.cost)
            if is_first():
                for log in due:
                    log(values, clock.round * (clock.steps or 0) + clock.step)

    @property
    def schedule_step(self) -> int:
        """Step at which a learning-rate schedule stands now: the clock's, or the round's last one while fine-tuning."""
        clock = self.clock
        if clock.round > 0 and clock.steps is not None and self.method.begin(clock).flat:
            return clock.steps - 1
        return clock.step

    @property
    def point(self) -> dict[str, Tensor] | None:
        """Weights and buffers of the rewind point by name; None before it, or without one."""
        return None if self._point.values is None else dict(self._point.values)

    def _keep_point(self, *, buffers: bool = True) -> None:
        clock = self.clock
        if clock.round == 0 and self.method.point(clock) == clock.step:
            with whole(self.net):
                self._point.keep(self.net, buffers=buffers)

    @property
    def shrinks(self) -> list[dict[str, Any]]:
        """What was cut while training, and what was looked at and did not pay, one record each."""
        return self._shrinking.records

    def track(self, *companions: nn.Module | torch.optim.Optimizer | Carried) -> None:
        """What has to shrink along with the network: an EMA, an `AveragedModel`, other copies, further optimizers.

        The optimizer given to `step` needs no tracking.

        Raises:
            TypeError: it is none of these.
            ValueError: a copy has other parameters than the network.
        """
        for other in companions:
            if isinstance(other, nn.Module):
                check_copy(self.net, unwrapped(other))
            elif not isinstance(other, torch.optim.Optimizer | Carried):
                raise TypeError(
                    f"a {type(other).__name__} cannot shrink along: track modules, optimizers, or objects with a method "
                    "shrink(cut) that replace each tensor they keep by cut(name, tensor)"
                )
        self._shrinking.companions += companions

    def parallel(self, wrap: Callable[[nn.Module], nn.Module]) -> Parallel:
        """`wrap(net)`, made anew after every cut: `ddp = run.parallel(lambda net: DistributedDataParallel(net))`."""
        wrapper = Parallel(self.net, wrap)
        self._shrinking.wrappers.append(wrapper)
        return wrapper

    def conditional(self, multiple_of: int = 16) -> Callable[..., Any]:
        """The network as a function that does not compute units whose gates draw an exact zero in a step.

        Call it instead of the network while training; outputs and gradients are the same up to rounding.

        Args:
            multiple_of: widths of convolutions are rounded up to a multiple of this, as processors like them.

        Raises:
            ValueError: nothing can be left out of this network; see `paring.run.conditional`.
        """
        present = self._shrinking.latest(lambda: conditional(self.net, self.probe.example, multiple_of))
        return lambda *args, **kwargs: present()(*args, **kwargs)

    def finish(
        self,
        net: nn.Module | None = None,
        *,
        inplace: bool = False,
        drop_inputs: bool | None = None,
        verify: bool = True,
        fuse_norms: bool = False,
        early: bool = False,
    ) -> nn.Module:
        """The small network: gates multiplied into the weights, stock layers, what closed removed exactly.

        A network under `fully_shard` (attached first, sharded then) is gathered: every process has to call this, and
        each gets the same small network, plain and whole, with the buffers of the first process. Its memory has to hold
        the whole network once. Shard the small one again to train on.

        Args:
            net: the network to finish, this run's by default; pass an EMA copy of it to finish that one.
            inplace: turn the network itself into the small one instead of a copy.
            drop_inputs: cut columns of linear layers whose weights are all zero although their input stays: inputs of
                the network, or single positions of a flattened map. Such a layer becomes a `SelectLinear`, the one
                layer of ours in a finished network. By default only when there are gates at "inputs", which ask for it.
            verify: compare the outputs before and after, and roll back any removal that moved them.
            fuse_norms: fuse every BatchNorm into the layer in front of it, where that one alone is read by it: smaller
                and faster, the same function in eval mode, and the end of training.
            early: this is a look at a training that is not over, or there was none to be: what it leaves undone is not
                said, and nothing warns.

        Returns:
            The small network in eval mode. `run.report` says what was removed, kept and why, and what was asked of the
            method and not done, which warns as well (`ParingWarning`). Where sizes written into the forward stand in the
            way (attention heads) and it is not `inplace`, it is the captured graph with new sizes.

        Raises:
            RuntimeError: the network does not compute the same with its gates folded into the weights, because its
                forward uses weights of a gated layer without calling it.
            ValueError: `inplace` for a network that is sharded over processes.
        """
        there = is_attached(self.net)
        small, self.report = finished(
            self.net if net is None else net,
            self.method,
            self.probe,
            inplace=inplace,
            drop_inputs=drop_inputs,
            verify=verify,
            fuse_norms=fuse_norms,
            said=attached(self.net).said if there else (),
            undone=self._undone() if there and not early else (),
            quiet=early,
        )
        return small

    def _undone(self) -> list[str]:
        with whole(self.net, weights=False):
            return self._loop.undone(self.net, self.method, self.clock)

    def cost(self, ask: Callable[[Gate], Tensor] | None = None, *, dead: bool = False) -> Cost:
        """What the network costs, layer by layer.

        Args:
            ask: `paring.gates.expected` or `paring.gates.support`; None counts everything as open (the dense network).
            dead: with `support`, count units too that compute nothing or that nobody reads.

        Raises:
            paring.CaptureError: the network cannot be captured.
        """
        if ask is None:
            return self.probe.costs()
        with whole(self.net, weights=False):
            found = openness(self.net, self.probe.wiring, ask)
        return self.probe.costs(live(found, self.probe.wiring) if ask is support and not dead else found)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_checked": None, "_hooks": None, "_logs": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if is_attached(self.net):
            attached(self.net).memory = self

    def packed(self, net: nn.Module) -> Tensor:
        """`state_dict` as bytes, for the state dict of the network, or for that of a copy, which may have other sizes."""
        state = self.state_dict()
        own = attached(net).state.plain()
        state["state"] = {**state["state"], **{name: own[name] for name in CUT_FIELDS}}
        return packed(state)

    def unpack(self, net: nn.Module, packed: Tensor) -> None:
        """Continue from what `packed` made of a network like this one; a copy of this run's network only gets the sizes.

        Raises:
            ValueError: as `load_state_dict` does, or these are not the bytes that were packed.
        """
        state = unpacked(packed)
        if net is self.net:
            self.load_state_dict(state)
            return
        after_cuts(state.get("state"), net, self.probe.example)
        cuts = recall(attached(net).state, TrainingState(**state["state"]))
        if cuts:
            cut_all(net, cuts, ())

    def state_dict(self) -> dict[str, Any]:
        """Clock, the method's own state and what was cut; gates are in the network's state dict, and so is all of this."""
        over = self.clock.round + 1 >= self.method.rounds > 1
        point = None if over else self.point  # nobody goes back to it in the last of several rounds
        return {
            "step": self.clock.step,
            "round": self.clock.round,
            "method": short_repr(self.method),
            "shrinks": copy.deepcopy(self.shrinks),
            "point": None if point is None else {k: v.clone() for k, v in point.items()},
            "state": attached(self.net).state.plain(),
            "said": list(attached(self.net).said),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`.

        When the network had shrunk, this one (freshly built and attached) is cut alike, with what is tracked; so load
        this state before those of the network, the optimizer and the averages.

        Raises:
            ValueError: the state belongs to another method, or to a network that is larger than this one now is, or is no
                such state. Nothing was changed then.
        """
        self.check_state(state)
        self._cut_like(state["state"])
        self.clock = Clock(state["step"], state["round"], self.clock.steps, self.clock.epoch_steps)
        self._shrinking.records = copy.deepcopy(state["shrinks"])
        kept = state["point"]
        self._point.values = None if kept is None else {name: value.clone() for name, value in kept.items()}
        attached(self.net).recall(state["said"])

    def check_state(self, state: Any) -> nn.Module:
        """The network as `load_state_dict(state)` would leave it: itself, or a smaller copy. Nothing is changed.

        Raises:
            ValueError: as `load_state_dict` does.
        """
        return checked(state, self.net, self.method, self.probe.example)

    def cut_like(self, state: Mapping[str, Any]) -> None:
        """Take over the method's state of another run, and cut the network (with what is tracked) as that one's was.

        Args:
            state: `state_dict()["state"]`.

        Raises:
            ValueError: it belongs to a network that is larger than this one now is, or does not fit it otherwise. Nothing
                was changed then.
        """
        after_cuts(state, self.net, self.probe.example)
        self._cut_like(state)

    def _cut_like(self, state: Mapping[str, Any]) -> None:
        stored = attached(self.net).state
        cuts = recall(stored, TrainingState(**state))
        if cuts:
            along = self._shrinking.companions
            self._shrinking.cut(cuts, [other for other in along if not isinstance(other, torch.optim.Optimizer)])
        restore_momenta(self.net)
        stored.take_over(state)
        set_momenta(self.net)
