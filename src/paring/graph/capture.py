"""Capture of a network as a flat graph of tensor operations: a thin adapter over `torch.export` (torch >= 2.6).

The network is traced in the mode it is in (train or eval), on a batch of two examples if it can, on fake tensors: parameters,
buffers, training flags and random states stay as they are. Every operation knows the module it came from, every
parameter its name. What cannot be traced raises `CaptureError` with the line of the user's model.
"""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from paring.graph.autocast import check_forward, own_forward, plainly

Example = Tensor | tuple[object, ...]


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


def as_inputs(example: Example) -> tuple[object, ...]:
    """The example as a tuple of positional arguments."""
    return example if isinstance(example, tuple) else (example,)


def check_example(example: Example) -> None:
    """Refuse an example without entries.

    Raises:
        CaptureError: a tensor of it is empty.
    """
    shapes = [tuple(t.shape) for t in pytree.tree_leaves(as_inputs(example)) if isinstance(t, Tensor)]
    if any(0 in shape for shape in shapes):
        raise CaptureError(f"the example is empty (shapes {shapes}); give at least one input to look at")


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


def batch_size(inputs: tuple[object, ...]) -> int | None:
    """The first dimension that all tensors of the inputs share; None if they do not share one."""
    sizes = {t.shape[0] if t.dim() else -1 for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)}
    size = sizes.pop() if len(sizes) == 1 else None
    return size if size and size > 0 else None


def untouched_random() -> AbstractContextManager[None]:
    """A context after which the random states of this process are as before."""
    ready = torch.cuda.is_available() and torch.cuda.is_initialized()
    context: AbstractContextManager[None] = torch.random.fork_rng(range(torch.cuda.device_count()) if ready else [])
    return context


def capture(net: nn.Module, example: Example, *, dynamic: bool = False) -> Captured:
    """Trace `net` on `example`, a tensor or a tuple of arguments with the batch first.

    dynamic: leave the batch size symbolic where the network allows it. Raises `CaptureError`, and ValueError for a forward
    that was put on an instance and holds on to it (`check_forward`).
    """
    whole = as_inputs(example)
    check_forward(net)
    try:
        inputs, program = _pair(whole), _export(net, _pair(whole), dynamic)
    except Exception:  # some networks want more than two examples; whatever is wrong otherwise shows again
        try:
            inputs, program = whole, _export(net, whole, dynamic)
        except Exception as error:  # torch.export raises whatever the network's own code raises
            raise CaptureError(_explain(net, whole, error)) from error
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = {name: program.constants[target] for name, target in signature.inputs_to_lifted_tensor_constants.items()}
    return Captured(program, dict(names), lifted, batch_size(inputs) or 1)


def _export(net: nn.Module, inputs: tuple[object, ...], dynamic: bool) -> ExportedProgram:
    shapes = first_dimensions(net, inputs, Dim.AUTO) if dynamic else None
    with untouched_random(), _traceable(net), own_forward(net), plainly(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # export warns about modules (LSTM, ...) that it restores itself
        return torch.export.export(net, inputs, dynamic_shapes=shapes, strict=False)


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


def _pair(inputs: tuple[object, ...]) -> tuple[object, ...]:
    """The first two examples; a single one is repeated, because tracers treat a batch of one as a special case."""
    size = batch_size(inputs)
    if size is None:
        return inputs
    rows = [0, 1] if size > 1 else [0, 0]

    def take(leaf: object) -> object:
        return leaf[rows].detach() if isinstance(leaf, Tensor) else leaf

    return tuple(pytree.tree_map(take, inputs))


def first_dimensions(net: nn.Module, inputs: tuple[object, ...], size: object) -> tuple[object, ...]:
    """`size` for the first dimension of every tensor, as `torch.export` wants it: those for `*args` in a tuple of their own."""

    def one(leaf: object) -> object:
        return {0: size} if isinstance(leaf, Tensor) and leaf.dim() else None

    shapes: tuple[object, ...] = pytree.tree_map(one, inputs)
    for place, argument in enumerate(inspect.signature(net.forward).parameters.values()):
        if argument.kind == argument.VAR_POSITIONAL:
            return (*shapes[:place], shapes[place:])
    return shapes


def _explain(net: nn.Module, inputs: tuple[object, ...], error: Exception) -> str:
    shapes = ", ".join(str(tuple(t.shape)) for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)) or "no tensor"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (
        f"{type(net).__name__} could not be captured on inputs of shape {shapes}{_line_of_model(error)}: "
        f"{type(error).__name__}: {first[:300]} "
        "Check that the example is what forward takes (a tensor, or a tuple of arguments), and keep Python branches "
        "and loops in forward independent of tensor values (torch.where, or move them out of the network)."
    )


def _line_of_model(error: BaseException) -> str:
    """The deepest frame outside torch and outside this package, as ' (in file, line n: code)'."""
    ours, torchs = Path(__file__).resolve().parent, Path(torch.__file__).resolve().parent
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for one in chain:
        for frame in reversed(traceback.extract_tb(one.__traceback__)):
            file = Path(frame.filename)
            if file.is_file() and not {ours, torchs} & set(file.resolve().parents) and "contextlib" not in file.name:
                return f" (in {frame.filename}, line {frame.lineno}: {frame.line})"
    return ""
