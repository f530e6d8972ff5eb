"""ONNX files that were checked: exported with any batch size, and run against the network before they count."""

from __future__ import annotations

import copy
import os
import warnings

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paring.core import plain_net
from paring.core.atomic import atomic
from paring.graph.capture import Example, as_inputs, batch_size, first_dimensions, untouched_random

TOLERANCE = 1e-4


class OnnxError(ValueError):
    """A network cannot be written as ONNX, or the file computes something else; the message says which and why."""


def to_onnx(net: nn.Module, example: Example, path: str | os.PathLike[str]) -> None:
    """Write `net` in eval mode to `path` (one file, opset of the exporter), with a dynamic batch where there is one.

    example: an input with the batch first, or a tuple of inputs. The file is run by onnxruntime on the example and on
    another batch size; outputs have to agree to 1e-4 of their largest magnitude. The network is left as it was, a file
    under `path` stays until the new one has passed.

    Raises `ImportError` without the extra `onnx`, `OnnxError` when the network cannot be exported or does not agree.
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
    inputs = as_inputs(example)
    with atomic(path) as file, untouched_random(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = batch_size(inputs)
        shapes = first_dimensions(net, inputs, torch.export.Dim.DYNAMIC) if size is not None else None
        traced = _resized(inputs, size, 2) if size is not None else inputs
        try:
            program = torch.onnx.export(
                net, traced, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False
            )
        except Exception as error:  # the exporter raises whatever the network's own code raises
            raise OnnxError(f"{type(net).__name__} cannot be exported: {_why(error)}") from error
        assert program is not None
        program.save(file.name, external_data=False)
        onnx.checker.check_model(file.name)
        session = onnxruntime.InferenceSession(file.name, providers=["CPUExecutionProvider"])
        for trial in (inputs, *([_resized(inputs, size, size + 1)] if size is not None else [])):
            _compare(net, session, trial)


def _why(error: BaseException) -> str:
    """The first line of what went wrong first."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line[:300]}"


def _resized(inputs: tuple[object, ...], size: int, wanted: int) -> tuple[object, ...]:
    """Examples repeated or left out until there are so many."""
    rows = torch.arange(wanted) % size

    def take(leaf: object) -> object:
        return leaf[rows.to(leaf.device)].detach() if isinstance(leaf, Tensor) else leaf

    return tuple(pytree.tree_map(take, inputs))


def _compare(net: nn.Module, session: object, inputs: tuple[object, ...]) -> None:
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    shapes = [tuple(t.shape) for t in tensors]
    names = [one.name for one in session.get_inputs()]  # type: ignore[attr-defined]
    if len(names) != len(tensors):
        raise OnnxError(f"the ONNX file of {type(net).__name__} has {len(names)} inputs for {len(tensors)} tensors")
    feed = {name: t.detach().cpu().numpy() for name, t in zip(names, tensors, strict=True)}
    try:
        found = [torch.from_numpy(array) for array in session.run(None, feed)]  # type: ignore[attr-defined]
    except Exception as error:  # onnxruntime has its own hierarchy of errors
        raise OnnxError(f"onnxruntime fails on inputs of shape {shapes}: {str(error)[:300]}") from error
    expected = [t for t in pytree.tree_leaves(net(*inputs)) if isinstance(t, Tensor)]
    for old, new in zip(expected, found, strict=True):
        old = old.detach().cpu()
        if old.shape != new.shape:
            raise OnnxError(f"the ONNX file gives {tuple(new.shape)} instead of {tuple(old.shape)} on inputs {shapes}")
        gap = float((old.double() - new.double()).abs().max() / old.double().abs().max().clamp_min(1e-30))
        if not gap <= TOLERANCE:
            raise OnnxError(f"the ONNX file differs by {gap:.1e} on inputs of shape {shapes}; it was not kept")
