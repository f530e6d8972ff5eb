"""The `Run` that `attach` returns: it drives one network's method from any training loop."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from paring.core import Clock, Gate, Method, Removal, attached, gates, release, set_attachment, strip
from paring.core.shared import Spread
from paring.cost import Cost, CostModel
from paring.gates import live, openness, support
from paring.graph import Report, shrink, wiring
from paring.handle.absorb import absorb
from paring.handle.carry import Carried, Cuts, check_network, check_optimizer
from paring.handle.conditional import Conditional
from paring.handle.decide import Decision, decide, settled_counts
from paring.handle.folded import outputs, same_or_raise
from paring.handle.live import check_copy, cut_all, plain, recall
from paring.handle.parallel import Parallel, from_first
from paring.handle.point import Point
from paring.handle.probe import NetworkProbe
from paring.handle.select import widen
from paring.handle.sharded import alike, gathered, is_sharded, refuse_sharded, whole

_TRIES = 3


class Run:
    """One network being trained with one method.

    Attributes:
        net: the network, gates included.
        method: the attached method.
        clock: where training stands.
        report: what `finish` removed; None before.
        shrinks: what was cut while training, and what was looked at and did not pay, one record each (see `decide`).
    """

    def __init__(
        self, net: nn.Module, method: Method, probe: NetworkProbe, clock: Clock, batch: int | None = None
    ) -> None:
        self.net = net
        self.method = method
        self.probe = probe
        self.clock = clock
        self.report: Report | None = None
        self.shrinks: list[dict[str, Any]] = []
        self._batch = batch
        self._companions: list[object] = []
        self._wrappers: list[Parallel] = []
        self._spare: tuple[str, ...] = ()
        self._seen: tuple[int, ...] = ()
        self._slow = 0
        self._checked: weakref.ref[torch.optim.Optimizer] | None = None
        self._point: Point | None = None
        method.start(net, clock)
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

    @property
    def shared_gates(self) -> list[Gate]:
        """Gates that act in several layers. FSDP2 wants each parameter in one place: `fully_shard` each of these first,
        then the blocks, then the network.
        """
        return list(dict.fromkeys(gate for m in self.net.modules() if isinstance(m, Spread) for gate in m.gates()))

    def penalty(self) -> Tensor:
        """Scalar to add to the loss; a constant zero when the method has none."""
        with whole(self.net, weights=self.method.reads_weights):
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
        with whole(self.net, weights=self.method.reads_weights, write=True):
            self.method.on_step(self.net, opt, self.clock)
        self._keep_point()
        removal = self.method.removal(self.net, self.clock)
        if removal is not None:
            self._shrink(opt, removal)

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
        if back.weights and self._point is None:
            raise ValueError(
                f"weights should go back to step {self.method.point(clock)}, but the first round ended at step {clock.step}"
            )
        self.clock = Clock(back.step, following.round, clock.steps, clock.epoch_steps)
        with whole(self.net, write=True):
            self.method.on_round(self.net, clock)
            if back.weights and self._point is not None:
                self._point.restore(self.net)
            self.method.start(self.net, self.clock)
        opt.state.clear()
        return True

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
        return None if self._point is None else dict(self._point.values)

    def _keep_point(self) -> None:
        clock = self.clock
        if self._point is None and clock.round == 0 and self.method.point(clock) == clock.step:
            with whole(self.net):
                self._point = Point.of(self.net)
            self._companions.append(self._point)

    def track(self, *companions: nn.Module | torch.optim.Optimizer | Carried) -> None:
        """What has to shrink along with the network: an EMA, an `AveragedModel`, other copies, further optimizers.

        The optimizer given to `step` needs no tracking.

        Raises:
            TypeError: it is none of these.
            ValueError: a copy has other parameters than the network.
        """
        for other in companions:
            if isinstance(other, nn.Module):
                check_copy(self.net, plain(other))
            elif not isinstance(other, torch.optim.Optimizer | Carried):
                raise TypeError(
                    f"a {type(other).__name__} cannot shrink along: track modules, optimizers, or objects with a method "
                    "shrink(cut) that replace each tensor they keep by cut(name, tensor)"
                )
        self._companions += companions

    def parallel(self, wrap: Callable[[nn.Module], nn.Module]) -> Parallel:
        """`wrap(net)`, made anew after every cut: `ddp = run.parallel(lambda net: DistributedDataParallel(net))`."""
        wrapper = Parallel(self.net, wrap)
        self._wrappers.append(wrapper)
        return wrapper

    def conditional(self, multiple_of: int = 16) -> Callable[..., Any]:
        """The network as a function that does not compute units whose gates draw an exact zero in a step.

        Call it instead of the network while training; outputs and gradients are the same up to rounding.

        Args:
            multiple_of: widths of convolutions are rounded up to a multiple of this, as processors like them.

        Raises:
            ValueError: nothing can be left out of this network; see `paring.handle.conditional`.
        """
        made: list[tuple[int, Conditional]] = []

        def present() -> Conditional:
            cuts = sum(bool(record["done"]) for record in self.shrinks)
            if not made or made[0][0] != cuts:
                made[:] = [(cuts, self._conditional(multiple_of))]
            return made[0][1]

        present()
        return lambda *args: present()(*args)

    def _conditional(self, multiple_of: int) -> Conditional:
        refuse_sharded(self.net, "conditional computation")
        stock = copy.deepcopy(self.net)
        set_attachment(stock, None)
        strip(stock)
        return Conditional(self.net, wiring(stock, self.probe.example), self.probe.example, multiple_of)

    def _shrink(self, opt: torch.optim.Optimizer, removal: Removal) -> None:
        """Look at what could go, and cut it out if that pays."""
        check_optimizer(opt)
        check_network(self.net)
        if removal.fold and absorb(self.net, self.probe.example, [opt, *self._companions]):
            for wrapper in self._wrappers:
                wrapper.renew()
        found = from_first(lambda: self._decide(removal))
        if found is None:
            return
        self._spare = found.spare
        if found.cuts is not None:
            self._cut(found.cuts, [opt, *self._companions])
        if found.record:
            self.shrinks.append(found.record)
        slow = found.cuts is None and bool(found.record.get("milliseconds"))
        self._slow = self._slow + 1 if slow else 0
        if self._slow in (0, _TRIES):  # one bad measurement on a busy machine is not the last word
            self._seen, self._slow = settled_counts(self.net), 0

    def _decide(self, removal: Removal) -> Decision | None:
        """Look again once something new has settled (it never unsettles), or when a cut was not faster once or twice."""
        if settled_counts(self.net) == self._seen:
            return None
        clock = self.clock
        return decide(self.net, self.probe.example, removal, step=clock.step, batch=self._batch, spare=self._spare)

    def _cut(self, cuts: Cuts, companions: list[object]) -> None:
        _ = self._model  # costs stay those of the original network
        cut_all(self.net, cuts, companions)
        self.method.on_shrink(self.net, cuts)
        for wrapper in self._wrappers:
            wrapper.renew()

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
                f"build it after attach (and after fully_shard, which replaces parameters), with {type(opt).__name__}(run.parameter_groups(lr=...))"
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

        Returns:
            The small network in eval mode. `run.report` says what was removed, kept and why. Where sizes written into the
            forward stand in the way (attention heads) and it is not `inplace`, it is the captured graph with new sizes.

        Raises:
            RuntimeError: the network does not compute the same with its gates folded into the weights, because its
                forward uses weights of a gated layer without calling it.
            ValueError: `inplace` for a network that is sharded over processes.
        """
        source = self.net if net is None else getattr(net, "_orig_mod", net)
        attached(source)
        example = self.probe.example
        if not is_sharded(source):
            small = source if inplace else copy.deepcopy(source)
        elif inplace:
            raise ValueError(
                f"this {type(source).__name__} is sharded over processes, and what is small is whole: leave inplace out"
            )
        else:
            small, example = gathered(source), alike(source, example)
        if drop_inputs is None:
            drop_inputs = any(kind == "inputs" for _, kind, _ in gates(small))
        self.method.finish(small)
        small.eval()
        before = [outputs(small, example, grad) for grad in (True, False)]
        release(small)
        set_attachment(small, None)
        widen(small, example)
        after = outputs(small, example, False)
        for expected in before:
            same_or_raise(expected, after, small)
        for parameter in small.parameters():
            parameter.grad = None
        small, self.report = shrink(small, example, inplace=inplace, verify=verify, drop_inputs=drop_inputs)
        return small

    @cached_property
    def _model(self) -> CostModel:
        gated = {id(p) for _, _, gate in gates(self.net) for p in gate.parameters()}
        own = sum(p.numel() for p in self.net.parameters() if id(p) not in gated)
        return CostModel(self.probe.wiring, extra=own - int(CostModel(self.probe.wiring)().parameters))

    def cost(self, ask: Callable[[Gate], Tensor] | None = None, *, dead: bool = False) -> Cost:
        """What the network costs, layer by layer.

        Args:
            ask: `paring.gates.expected` or `paring.gates.support`; None counts everything as open (the dense network).
            dead: with `support`, count units too that compute nothing or that nobody reads.

        Raises:
            paring.CaptureError: the network cannot be captured.
        """
        if ask is None:
            return self._model()
        with whole(self.net, weights=False):
            found = openness(self.net, self.probe.wiring, ask)
        return self._model(live(found, self.probe.wiring) if ask is support and not dead else found)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_checked": None, "_wrappers": []}

    def state_dict(self) -> dict[str, Any]:
        """Clock, the method's own state and what was cut; gates are in the network's state dict."""
        return {
            "step": self.clock.step,
            "round": self.clock.round,
            "method": repr(self.method),
            "shrinks": copy.deepcopy(self.shrinks),
            "point": None if self._point is None else {k: v.clone() for k, v in self._point.values.items()},
            "state": {name: value.clone() for name, value in attached(self.net).state.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`.

        When the network had shrunk, this one (freshly built and attached) is cut alike, with what is tracked; so load
        this state before those of the network, the optimizer and the averages.

        Raises:
            ValueError: the state belongs to another method, or to a network that is larger than this one now is.
        """
        if state["method"] != repr(self.method):
            raise ValueError(f"this state was saved with {state['method']}, but {self.method!r} is attached")
        stored = attached(self.net).state
        cuts = recall(stored, state["state"])
        self.clock = Clock(state["step"], state["round"], self.clock.steps, self.clock.epoch_steps)
        if cuts:
            self._cut(cuts, [other for other in self._companions if not isinstance(other, torch.optim.Optimizer)])
        self.shrinks = copy.deepcopy(state.get("shrinks", []))
        if state.get("point") is not None:
            if self._point is None:
                self._point = Point({})
                self._companions.append(self._point)
            self._point.values = {name: value.clone() for name, value in state["point"].items()}
        stored.clear()
        stored.update({name: value.clone() for name, value in state["state"].items()})
