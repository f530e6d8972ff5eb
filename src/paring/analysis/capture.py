"""Capture of a network as a flat graph of tensor operations: a thin adapter over `torch.export` (torch >= 2.7).

The network is traced in the mode it is in (train or eval), on a batch of two examples if it can, on fake tensors: parameters,
buffers, training flags and random states stay as they are; a network of transformers returns no cache meanwhile. Every
operation knows the module it came from, every parameter its name. What cannot be traced raises `CaptureError` with the line of the user's model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from paring.analysis.alone import alone
from paring.analysis.autocast import check_forward, own_forward, plainly, unrecorded
from paring.analysis.explain import explain
from paring.analysis.free_sizes import arguments, dynamic_shapes
from paring.analysis.quiet import quiet
from paring.core import Example, Inputs
from paring.core.without_cache import without_cache


class CaptureError(ValueError):
    """The network could not be captured as a graph; the message says what, where and what to do."""


@dataclass(frozen=True)
class Captured:
    """A traced network.

    program: what `torch.export` returned. tensors: placeholder name -> parameter or buffer name as in `net`.
    constants: placeholder name -> tensor written in the forward. batch: examples in the traced batch.
    """

    program: ExportedProgram
    tensors: dict[str, str]
    constants: dict[str, Tensor]
    batch: int

    @property
    def nodes(self) -> Iterable[fx.Node]:
        return list(self.program.graph.nodes)


def check_example(net: nn.Module, inputs: Inputs) -> None:
    """Refuse an example without entries, and one that is no call of the network's forward.

    Raises:
        CaptureError: a tensor of it is empty, or an argument is missing or too many.
    """
    if any(0 in shape for shape in inputs.shapes):
        raise CaptureError(f"the example is empty (shapes {inputs}); give at least one input to look at")
    try:
        arguments(net, inputs)
    except TypeError as error:
        raise CaptureError(
            f"forward of {type(net).__name__} takes {_signature(net)}, but the example gives {_given(inputs)}: {error}. Give "
            "positional arguments as a tuple, keyword arguments as a mapping"
        ) from None


def check_layers(net: nn.Module) -> None:
    """Refuse parameters without entries or without a shape.

    Raises:
        CaptureError: says which.
    """
    for name, parameter in net.named_parameters():
        if is_lazy(parameter):
            raise CaptureError(f"'{name}' of {type(net).__name__} has no shape yet; run the network on an input first")
        if parameter.numel() == 0:
            raise CaptureError(
                f"'{name}' of {type(net).__name__} has shape {tuple(parameter.shape)}: a layer without units or inputs cannot "
                "be looked at; leave it out of the network"
            )


def check_copies(net: nn.Module) -> None:
    """Refuse weights that hooks compute from others (`torch.nn.utils.prune`, the old `weight_norm`): they cannot be copied.

    Raises:
        CaptureError: says which, and what to do.
    """
    for path, module in net.named_modules():
        for leaf, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None and leaf in ("weight", "bias"):
                raise CaptureError(
                    f"the {leaf} of '{path}' is computed from other tensors by a hook. Make it a parameter first: "
                    f"torch.nn.utils.prune.remove(module, {leaf!r}) after pruning, "
                    "torch.nn.utils.remove_weight_norm(module) after weight_norm"
                )


def untouched_random() -> AbstractContextManager[None]:
    """A context after which the random states of this process are as before."""
    ready = torch.cuda.is_available() and torch.cuda.is_initialized()
    context: AbstractContextManager[None] = torch.random.fork_rng(range(torch.cuda.device_count()) if ready else [])
    return context


@alone()
def capture(net: nn.Module, example: Example, *, dynamic: bool = False, sizes: Sequence[int] = ()) -> Captured:
    """Trace `net` on `example`: a tensor, a tuple of arguments or a mapping of keyword arguments, with the batch first.

    dynamic: leave the batch size symbolic where the network allows it, and these other sizes. Raises `CaptureError`, and ValueError for a forward
    that was put on an instance and holds on to it (`check_forward`).
    """
    whole = Inputs.of(example)
    check_forward(net)
    check_example(net, whole)
    check_layers(net)
    try:
        inputs = whole.cycled(2)  # tracers treat a batch of one as a special case
        program = _export(net, inputs, dynamic, sizes)
    except Exception:  # some networks want more than two examples; whatever is wrong otherwise shows again
        try:
            inputs, program = whole, _export(net, whole, dynamic, sizes)
        except Exception as error:  # torch.export raises whatever the network's own code raises
            with untouched_random():
                message = explain(net, whole, error, _traces)
            raise CaptureError(message) from error
    _measure(program, inputs)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = {name: program.constants[target] for name, target in signature.inputs_to_lifted_tensor_constants.items()}
    return Captured(program, dict(names), lifted, inputs.batch or 1)


def _measure(program: ExportedProgram, inputs: Inputs) -> None:
    """Give sizes that depend on values (how many edges of a graph stay, say) those that they have on the example."""
    unknown = [node for node in program.graph.nodes if any(size.node.hint is None for size in _symbols(node))]
    if not unknown:
        return
    plain, found = program.module(), {}

    class Run(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            made = super().run_node(n)
            found[n.name] = made
            return made

    given = inputs.map(Tensor.clone)
    with untouched_random(), torch.no_grad():
        Run(plain).run(*pytree.tree_leaves((given.args, dict(given.kwargs))))
    for node in unknown:
        values, made = (pytree.tree_leaves(one) for one in (node.meta["val"], found.get(node.name)))
        for value, real in zip(values, made, strict=False):
            if isinstance(value, Tensor) and isinstance(real, Tensor):
                for size, number in zip(value.shape, real.shape, strict=True):
                    symbol: Any = size
                    if isinstance(symbol, torch.SymInt) and symbol.node.hint is None:
                        symbol.node._hint = number


def _symbols(node: fx.Node) -> list[torch.SymInt]:
    values = [one for one in pytree.tree_leaves(node.meta.get("val")) if isinstance(one, Tensor)]
    sizes: list[Any] = [size for value in values for size in value.shape]
    return [size for size in sizes if isinstance(size, torch.SymInt)]


@contextmanager
def _no_stacks() -> Iterator[None]:
    """Meanwhile torch does not keep the lines of Python behind each operation: a quarter of the time, and nothing reads them."""
    config: Any = getattr(fx, "config", None)
    before = getattr(config, "do_not_emit_stack_traces", None)  # torch < 2.9 has no such switch
    if before is not None:
        config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        if before is not None:
            config.do_not_emit_stack_traces = before


@_no_stacks()
def _export(net: nn.Module, inputs: Inputs, dynamic: bool, sizes: Sequence[int] = ()) -> ExportedProgram:
    shapes = dynamic_shapes(net, inputs, sizes, Dim.AUTO) if dynamic else None
    with (
        untouched_random(),
        _same_attributes(net),
        _traceable(net),
        _own_flat_weights(net),
        own_forward(net),
        plainly(),
        unrecorded(),
        without_cache(net),
        torch.no_grad(),
        quiet(),
    ):
        return torch.export.export(net, inputs.args, dict(inputs.kwargs), dynamic_shapes=shapes, strict=False)


def _traces(net: nn.Module, inputs: Inputs) -> bool:
    """Whether the network can be traced as it is now."""
    try:
        _export(net, inputs, False)
    except Exception:  # torch.export raises whatever the network's own code raises
        return False
    return True


_STOCK = frozenset(vars(nn.Module()))


@contextmanager
def _same_attributes(net: nn.Module) -> Iterator[None]:
    """What a forward leaves in attributes, lists and mappings of them is gone afterwards: a tracer leaves tensors without values."""
    held = [(vars(module), {n: v for n, v in vars(module).items() if n not in _STOCK}) for module in net.modules()]
    filled = [(one, one.copy()) for _, before in held for one in before.values() if isinstance(one, list | dict)]
    try:
        yield
    finally:
        for now, before in held:
            for name in now.keys() - before.keys() - _STOCK:
                del now[name]
            now.update(before)
        for one, content in filled:
            one.clear()
            one.extend(content) if isinstance(one, list) else one.update(content)


@contextmanager
def _traceable(net: nn.Module) -> Iterator[None]:
    """A BatchNorm without momentum computes with its step count, which cannot be traced: here it has one meanwhile."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.momentum is None]
    for norm in norms:
        norm.momentum = 0.1
    try:
        yield
    finally:
        for norm in norms:
            norm.momentum = None


@contextmanager
def _own_flat_weights(net: nn.Module) -> Iterator[None]:
    """Recurrent layers keep lists of their weights; those of torch before 2.8 hold what it traced with afterwards."""
    layers = [m for m in net.modules() if isinstance(m, nn.RNNBase)]
    lists = [(m, list(m._flat_weights), list(m._flat_weight_refs)) for m in layers]
    try:
        yield
    finally:
        for layer, weights, refs in lists:
            layer._flat_weights, layer._flat_weight_refs = weights, refs


def _signature(net: nn.Module) -> str:
    return str(inspect.signature(net.forward)).partition(" -> ")[0]


def _given(inputs: Inputs) -> str:
    count = len(inputs.args)
    told = [f"{count} positional argument{'s' * (count != 1)}"] if count or not inputs.kwargs else []
    return " and ".join([*told, *([", ".join(inputs.kwargs)] if inputs.kwargs else [])])
