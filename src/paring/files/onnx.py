"""ONNX files that were checked: exported with any batch size, and run against the network before they count."""

from __future__ import annotations

import copy
import os

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paring.analysis.alone import alone
from paring.analysis.capture import check_example, check_layers, first_dimensions, untouched_random
from paring.analysis.quiet import quiet
from paring.core import Example, Inputs, plain_net
from paring.core.atomic import atomic
from paring.core.without_cache import without_cache

TOLERANCE = 1e-4


class OnnxError(ValueError):
    """A network cannot be written as ONNX, or the file computes something else; the message says which and why."""


@alone()
def to_onnx(net: nn.Module, example: Example, path: str | os.PathLike[str]) -> None:
    """Write `net` in eval mode to `path` (one file, opset of the exporter), with a dynamic batch where there is one.

    example: an input with the batch first, a tuple of inputs or a mapping of keyword arguments. The file is run by
    onnxruntime on the example and on another batch size; outputs have to agree to 1e-4 of their largest magnitude. The
    network is left as it was, a file under `path` stays until the new one has passed.

    Raises `ImportError` without the extra `onnx`, `CaptureError` when the example is empty or no call of the network,
    `OnnxError` when the network cannot be exported or does not agree.
    """
    net = plain_net(net, "to_onnx", OnnxError)
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"to_onnx needs {error.name}: install paring[onnx] (onnx, onnxscript, onnxruntime)."
        ) from error
    net = copy.deepcopy(net).eval()
    inputs = Inputs.of(example)
    check_example(net, inputs)
    check_layers(net)
    with atomic(path) as file, untouched_random(), without_cache(net), torch.no_grad(), quiet():
        size = inputs.batch
        shapes = first_dimensions(net, inputs, torch.export.Dim.DYNAMIC) if size is not None else None
        traced = inputs.cycled(2)
        try:
            program = torch.onnx.export(
                net,
                traced.args,
                kwargs=dict(traced.kwargs),
                dynamo=True,
                dynamic_shapes=shapes,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter raises whatever the network's own code raises
            raise OnnxError(f"{type(net).__name__} cannot be exported: {_why(error)}") from error
        assert program is not None
        program.save(file.name, external_data=False)
        onnx.checker.check_model(file.name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(file.name, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has its own hierarchy of errors
            raise OnnxError(f"onnxruntime refuses the file of {type(net).__name__}: {_why(error)}") from error
        for trial in (inputs, *([inputs.cycled(size + 1)] if size is not None else [])):
            _compare(net, session, trial)


def _why(error: BaseException) -> str:
    """The first line of what went wrong first."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line[:300]}"


def _compare(net: nn.Module, session: object, inputs: Inputs) -> None:
    tensors, shapes = inputs.tensors, inputs.shapes
    names = [one.name for one in session.get_inputs()]  # type: ignore[attr-defined]
    if len(names) != len(tensors):
        raise OnnxError(f"the ONNX file of {type(net).__name__} has {len(names)} inputs for {len(tensors)} tensors")
    feed = {name: t.detach().cpu().numpy() for name, t in zip(names, tensors, strict=True)}
    try:
        found = [torch.from_numpy(array) for array in session.run(None, feed)]  # type: ignore[attr-defined]
    except Exception as error:  # onnxruntime has its own hierarchy of errors
        raise OnnxError(f"onnxruntime fails on inputs of shape {shapes}: {str(error)[:300]}") from error
    expected = [t for t in pytree.tree_leaves(inputs.call(net)) if isinstance(t, Tensor)]
    for old, new in zip(expected, found, strict=True):
        old = old.detach().cpu()
        if old.shape != new.shape:
            raise OnnxError(f"the ONNX file gives {tuple(new.shape)} instead of {tuple(old.shape)} on inputs {shapes}")
        gap = float((old.double() - new.double()).abs().max() / old.double().abs().max().clamp_min(1e-30))
        if not gap <= TOLERANCE:
            raise OnnxError(f"the ONNX file differs by {gap:.1e} on inputs of shape {shapes}; it was not kept")
