"""`deploy`: the same network, each layer in the fastest form on this machine.

Every layer is called on what it sees in the example, as it is and in each sparse form that there is for it, in turns; a
form counts only when it computes the same and is faster by more than the noise (the 99 % interval of the median of paired
quotients). Then the whole network is compared and timed beside the original. Where it differs, or is not faster, the layers
that gained least are put back, half of them at a time: what is returned is never slower than what was given.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paring.analysis.alone import alone
from paring.analysis.capture import check_example, check_layers, untouched_random
from paring.analysis.free_sizes import free_sizes
from paring.bits import BitsError, pack_bits
from paring.core import Example, Inputs, Refusal, plain_net
from paring.core.answers_only import AnswersOnly
from paring.cost import Comparison, Latency, latency
from paring.cost.speed_up import compare_times
from paring.deployment.deploy_error import DeployError
from paring.deployment.deploy_report import DeployedLayer, DeployReport
from paring.deployment.layer_forms import forms, zeros
from paring.deployment.sparse_layers import SparseLayer
from paring.deployment.torch_sparse import TorchSparseLinear, TwoFourLinear
from paring.hard import Sign, Staircase
from paring.removal.tolerances import differs, gap

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@alone()
def deploy(
    net: nn.Module, example: Example, *, threads: int | None = None, repeats: int = 30
) -> tuple[nn.Module, DeployReport]:
    """A copy of `net` in eval mode whose layers run in their fastest form on this device, and what each gained.

    Forms: dense; CSR and blocks through MKL; packed rows (linear layers, convolutions along one and two dimensions, extra
    `bits`); 2:4 in half precision on CUDA; the network of bits of `pack_bits`. All but the last two for float32 on the CPU.

    Args:
        net: finished, e.g. with many zeros in its weights; stays as it is.
        example: an input of the size that is to be fast: a tensor, a tuple of arguments or a mapping of keyword arguments.
        threads: of the CPU; those that torch uses now, if None.
        repeats: rounds of timing.

    Returns:
        The network, for answers only (no gradients, no train mode, no files: keep `net` for these), and the report.

    Raises:
        DeployError: the network has gates, was deployed already, or fails on the example.
        paring.CaptureError: the example is empty or no call of the network.
        ValueError: threads or repeats below 1.
    """
    net = plain_net(net, "deploy", DeployError)
    for name, value in (("threads", threads), ("repeats", repeats)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value} but must be at least 1")
    inputs = Inputs.of(example)
    check_example(net, inputs)
    check_layers(net)
    threads = threads or torch.get_num_threads()
    with untouched_random(), torch.inference_mode(False), torch.no_grad():
        work = _Work(copy.deepcopy(net).eval().requires_grad_(False), inputs, threads, repeats)
        return work.deployed()


@dataclass(frozen=True)
class _Taken:
    """A layer, the form that it runs in, and how that did."""

    layer: nn.Module
    form: AnswersOnly
    line: DeployedLayer


class _Work:
    """One call of `deploy`; `net` is a copy, and stays dense."""

    def __init__(self, net: nn.Module, inputs: Inputs, threads: int, repeats: int) -> None:
        self.net, self.inputs, self.threads, self.repeats = net, inputs, threads, repeats
        self.notes: list[str] = []
        self.truth = self._answers(net, inputs)
        if isinstance(self.truth, Refusal):
            raise DeployError(f"{type(net).__name__} fails on the example: {self.truth}")

    def deployed(self) -> tuple[nn.Module, DeployReport]:
        lines, taken = self._layers()
        fast, times = self._kept(taken, lines)
        if bits := self._bits(times):
            fast, times = bits
            lines = {}
        before, after = times["dense"], times["deployed"]
        found = self._answers(fast, self.inputs)
        assert not isinstance(found, Refusal)
        assert not isinstance(self.truth, Refusal)
        report = DeployReport(
            tuple(lines.values()),
            1e6 * before.median_s,
            1e6 * after.median_s,
            _compared(after, before),
            _bytes(self.net),
            _bytes(fast),
            gap(self.truth, found),
            self.threads,
            str(self.inputs),
            tuple(self.notes),
        )
        return fast, report

    def _layers(self) -> tuple[dict[str, DeployedLayer], dict[str, _Taken]]:
        """A line for every layer that was reached, and those that are faster in another form."""
        lines, taken = {}, {}
        seen = _seen(self.net, self.inputs)
        for name, layer in self.net.named_modules():
            if not isinstance(layer, _LAYERS):
                continue
            line = DeployedLayer(
                name, type(layer).__name__, tuple(layer.weight.shape), zeros(layer), "dense", None, None, {}, ""
            )
            found = forms(layer)
            if layer not in seen:
                found = Refusal("its own forward was not called on the example")
            if isinstance(found, Refusal):
                lines[name] = replace(line, reason=found.reason)
                continue
            made = {form: make() for form, make in found.items()}
            lines[name], form = self._best(line, layer, made, seen[layer])
            if form is not None:
                taken[name] = _Taken(layer, form, lines[name])
        return lines, taken

    def _best(
        self, line: DeployedLayer, layer: nn.Module, made: Mapping[str, AnswersOnly], call: Inputs
    ) -> tuple[DeployedLayer, AnswersOnly | None]:
        """The form that is faster than dense by more than the noise, the fastest of those."""
        truth = self._answers(layer, call)
        assert not isinstance(truth, Refusal)
        problems = {name: self._same(truth, layer, form, call) for name, form in made.items()}
        right = {name: form for name, form in made.items() if problems[name] is None}
        times = latency({"dense": layer, **right}, call, threads=self.threads, repeats=self.repeats)
        shown = {name: 1e6 * time.median_s for name, time in times.items()}
        line = replace(line, dense_us=shown["dense"], taken_us=shown["dense"], times=shown)
        ratios = {name: _compared(times[name], times["dense"]) for name in right}
        faster = [name for name, ratio in ratios.items() if ratio.high < 1]
        if not faster:
            wrong = next((f"{name}: {problem}" for name, problem in problems.items() if problem), None)
            return replace(line, reason=wrong or "dense is as fast"), None
        best = min(faster, key=lambda name: ratios[name].ratio)
        return replace(line, form=best, taken_us=shown[best]), right[best]

    def _kept(self, taken: dict[str, _Taken], lines: dict[str, DeployedLayer]) -> tuple[nn.Module, dict[str, Latency]]:
        """The network with as many of these forms as agree and make it faster; lines of those put back say so."""
        ranked = sorted(taken, key=lambda name: taken[name].line.saved_us)
        while True:
            fast = _with(self.net, {taken[name].layer: taken[name].form for name in ranked})
            problem = self._apart(fast) if ranked else None
            times = latency(
                {"dense": self.net, "deployed": fast}, self.inputs, threads=self.threads, repeats=self.repeats
            )
            if not ranked:
                return fast, {"dense": times["dense"], "deployed": times["dense"]}
            if problem is None and _compared(times["deployed"], times["dense"]).high < 1:
                return fast, times
            back = ranked[: -(-len(ranked) // 2)]
            for name in back:
                why = "in the network no faster" if problem is None else f"the network's {problem}"
                lines[name] = replace(lines[name], form="dense", taken_us=lines[name].dense_us, reason=why)
            ranked = ranked[len(back) :]

    def _bits(self, times: dict[str, Latency]) -> tuple[nn.Module, dict[str, Latency]] | None:
        """The network of bits, where there is one that agrees and is faster than what was found."""
        if not any(isinstance(module, Sign | Staircase) for module in self.net.modules()):
            return None
        try:
            packed = pack_bits(self.net, self.inputs)
        except (BitsError, ImportError) as error:
            self.notes.append(f"bits: {error}")
            return None
        assert not isinstance(self.truth, Refusal)
        if problem := self._same(self.truth, self.net, packed, self.inputs):
            self.notes.append(f"bits: {problem}; pr.pack_bits says why, and makes the network all the same")
            return None
        found = latency(
            {"dense": self.net, "deployed": packed}, self.inputs, threads=self.threads, repeats=self.repeats
        )
        ratio = _compared(found["deployed"], found["dense"])
        if ratio.high >= 1 or ratio.ratio >= _compared(times["deployed"], times["dense"]).ratio:
            self.notes.append(f"bits: {1e6 * found['deployed'].median_s:,.0f} µs, no faster")
            return None
        self.notes.append(f"the whole network runs on bits:\n{packed.report}")
        return packed, found

    def _apart(self, fast: nn.Module) -> Refusal | None:
        """What is different on the example, on another batch, or at another size that the network takes."""
        size = self.inputs.batch
        others = [] if size is None else [self.inputs.cycled(size + 1)]
        if self.inputs.tensors[0].device.type == "cpu":
            others += free_sizes(self.net, self.inputs).values()
        for trial in (self.inputs, *others):
            truth = self._answers(self.net, trial)
            if isinstance(truth, Refusal):
                continue
            if problem := self._same(truth, self.net, fast, trial):
                return problem
        return None

    def _same(self, truth: list[Tensor], old: nn.Module, new: nn.Module, call: Inputs) -> Refusal | None:
        """What is different beyond rounding."""
        found = self._answers(new, call)
        if isinstance(found, Refusal):
            return found

        def rounding() -> float:
            wide = call.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
            exact = self._answers(copy.deepcopy(old).double(), wide)
            return 0.0 if isinstance(exact, Refusal) else gap(exact, truth)

        return differs(truth, found, torch.float32, rounding)

    @staticmethod
    def _answers(net: nn.Module, call: Inputs) -> list[Tensor] | Refusal:
        """All output tensors, with the same random numbers each time; or the error."""
        torch.manual_seed(0)
        try:
            out = call.call(net)
        except Exception as error:  # a network raises what it likes
            return Refusal(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]


def _compared(a: Latency, b: Latency) -> Comparison:
    """The time of one over that of another: in CPU time on one thread, to which other processes do not add."""
    if a.cpu and b.cpu and all(a.cpu) and all(b.cpu):
        return compare_times(a.cpu, b.cpu, "CPU time")
    return compare_times(a.runs, b.runs)


def _seen(net: nn.Module, inputs: Inputs) -> dict[nn.Module, Inputs]:
    """What each layer is called with; the call with most numbers of those that there are."""
    found: dict[nn.Module, Inputs] = {}

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Inputs(args, kwargs).map(lambda tensor: tensor.detach().clone())
        size = sum(tensor.numel() for tensor in call.tensors)
        if layer not in found or size > sum(tensor.numel() for tensor in found[layer].tensors):
            found[layer] = call

    layers = [module for module in net.modules() if isinstance(module, _LAYERS)]
    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        inputs.call(net)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _with(net: nn.Module, forms: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """A copy of a network, these layers in their new form; what is not replaced is copied."""
    return copy.deepcopy(net, {id(layer): form for layer, form in forms.items()})


def _bytes(net: nn.Module) -> int:
    """Of parameters, buffers and packed weights, ties once."""
    tensors = {id(t): t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers())}
    packed = sum(m.bytes for m in net.modules() if isinstance(m, SparseLayer | TorchSparseLinear | TwoFourLinear))
    return sum(tensors.values()) + packed
