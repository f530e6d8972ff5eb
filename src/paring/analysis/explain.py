"""Why a network could not be captured, and what mends it: only what was tried or is known to be true."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call

from paring.core import Inputs
from paring.core.evaluating import evaluating

_OURS, _TORCH, _LIBRARY = (Path(str(file)).resolve().parent for file in (__file__, torch.__file__, traceback.__file__))
Traces = Callable[[nn.Module, Inputs], bool]
_BY_VALUES = ("GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException")
_READS_VALUES = re.compile(
    r"\.numpy\(\) is not supported|\.tolist\(\)|\.item\(\)|_local_scalar_dense|data[- ]dependent", re.IGNORECASE
)
_OUTPUT = re.compile(r"Found <class '(?P<kind>[^']*)'> in output")
_INPUT = re.compile(r"Unsupported input type <class '(?P<kind>[^']*)'>")


def explain(net: nn.Module, inputs: Inputs, error: Exception, traces: Traces) -> str:
    """One message: which network, where in its forward, the reason in a sentence, and what to do.

    traces: whether a network can be captured on inputs; asked before another mode or setting is recommended.
    """
    head = f"{type(net).__name__} could not be captured on inputs of shape {inputs}{_line_of_model(error)}: "
    if found := _OUTPUT.search(str(error)):
        return (
            f"{head}its forward returns a {found['kind'].split('.')[-1]}, and outputs are tensors, or tuples, lists and dicts of "
            "them. Return the tensors alone (a dataclass can be registered with torch.export.register_dataclass)"
        )
    if found := _INPUT.search(str(error)):
        kind = found["kind"]
        hint = "torch.from_numpy(...) makes tensors of arrays" if kind == "numpy.ndarray" else "pass what it holds"
        return f"{head}the example holds a {kind}, and arguments are tensors, numbers, text, or tuples, lists and dicts of them; {hint}"
    if type(error).__name__ in _BY_VALUES or _READS_VALUES.search(str(error)):
        return head + _by_values(net, inputs, traces)
    if own := _own_failure(net, inputs):
        return f"{head}the network itself fails on this example with {own} Give an example that it takes: same shapes and dtypes as its inputs"
    return (
        f"{head}{_told(error)} The network runs on this example, but torch.export cannot trace it. Move what it stumbles over "
        "out of forward, or exclude that part from the network that you pass (PARING_DEBUG=1 shows what torch logs)"
    )


def _by_values(net: nn.Module, inputs: Inputs, traces: Traces) -> str:
    what = "its forward goes by the values of tensors there (a branch, a loop or a size), and a graph is the same for all values. "
    if net.training:
        with evaluating(net):
            works = traces(net, inputs)
        if works:
            return what + "It does so in train mode alone: call net.eval() first (and net.train() afterwards, to train)"
    return what + "Use torch.where, or move the branch out of the network"


def _own_failure(net: nn.Module, inputs: Inputs) -> str:
    """What the network raises when it is simply called, "" for nothing; its buffers stay as they are."""
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    copied = inputs.map(lambda tensor: tensor.detach().clone())
    try:
        with torch.no_grad():
            functional_call(net, buffers, copied.args, dict(copied.kwargs))
    except Exception as error:  # whatever the network's own code raises
        return _told(error)
    return ""


def _told(error: Exception) -> str:
    """Type and first line of an error, as a sentence."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300].rstrip(".")
    return f"{type(error).__name__}: {first}." if first else f"{type(error).__name__}."


def _line_of_model(error: BaseException) -> str:
    """The deepest frame outside torch, this package and the standard library, as ' (in file, line n: code)'."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for one in chain:
        for frame in reversed(traceback.extract_tb(one.__traceback__)):
            if frame.line and _of_model(Path(frame.filename)):
                return f" (in {frame.filename}, line {frame.lineno}: {frame.line})"
    return ""


def _of_model(file: Path) -> bool:
    if not file.is_file():
        return False
    parents = set(file.resolve().parents)
    library = _LIBRARY in parents and "site-packages" not in file.parts
    return not library and not {_OURS, _TORCH} & parents
