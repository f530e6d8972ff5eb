"""ONNX files that were checked: exported with all sizes free that can be, and run against the network before they count."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paring.analysis.alone import alone
from paring.analysis.capture import check_example, check_layers, untouched_random
from paring.analysis.free_sizes import dynamic_shapes, free_sizes, named_shapes
from paring.analysis.quiet import quiet
from paring.core import Example, Inputs, plain_net
from paring.core.atomic import atomic
from paring.core.without_cache import without_cache
from paring.files.int8 import Int8, Int8Report, Int8Search
from paring.files.onnx_sizes import rename_sizes
from paring.removal.tolerances import HALF

TOLERANCE = 1e-4


class OnnxError(ValueError):
    """A network cannot be written as ONNX, or the file computes something else; the message says which and why."""


class Sizes(dict[str, tuple[int | str, ...]]):
    """By the name of each input of a file its sizes: a number is fixed, a name is free.

    Attributes:
        int8: which layers are int8, and what that costs; None for a float file.
    """

    int8: Int8Report | None = None


@alone()
def to_onnx(
    net: nn.Module,
    example: Example,
    path: str | os.PathLike[str],
    *,
    dynamic: bool | Mapping[str, Sequence[int]] = True,
    int8: Int8 | Iterable[Example] | None = None,
) -> Sizes:
    """Write `net` in eval mode to `path` (one file, opset of the exporter), and run it before it counts.

    The file is run by onnxruntime on the example, on another batch size, and with every other size that is free; outputs have
    to agree to 1e-4 of their largest magnitude, in half precision to sixteen units in the last place. The network is left as it
    was, a file under `path` stays until the new one has passed.

    Args:
        net: a network.
        example: an input with the batch first, a tuple of inputs or a mapping of keyword arguments.
        path: where the file goes.
        dynamic: which sizes are free. True: the batch, if the inputs share one, and all sizes that the network takes halved
            or doubled (lengths of text, height and width of images), if they can be exported so. False: none. Else the
            dimensions by the name of the argument, `{"input_ids": [0, 1]}`.
        int8: batches of inputs like those to come (some hundred examples): layers with weights compute in int8 where the
            outputs stay near the float network's; `paring.files.Int8(batches, error=...)` says how near. Standard ONNX
            (QuantizeLinear, DequantizeLinear). Weights that lie on a grid already, as compressors leave them, keep it.

    Returns:
        By the name of each input of the file its sizes: a number is fixed, a name is free. `.int8` says what became of the
        layers.

    Raises:
        ImportError: the extra `onnx` is missing.
        paring.CaptureError: the example is empty or no call of the network.
        ValueError: `dynamic` names what is not there.
        OnnxError: the network cannot be exported (so), or does not agree; no layer can be int8 within the bound.
    """
    net, settings = plain_net(net, "to_onnx", OnnxError), None if int8 is None else Int8.of(int8)
    for module in net.modules():
        if why := getattr(module, "no_onnx", ""):
            raise OnnxError(f"to_onnx cannot write a {type(module).__name__}: {why}")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
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
        found = _exported(net, inputs, dynamic, file.name)
        if settings is not None:
            found.int8 = _in_int8(net, file.name, settings)
        return found


def _exported(net: nn.Module, inputs: Inputs, dynamic: bool | Mapping[str, Sequence[int]], path: str) -> Sizes:
    *likely, last = _ways(net, inputs, dynamic)
    for shapes, trials in likely:
        try:
            return _write(net, inputs, shapes, trials, path)
        except OnnxError:  # a network may take a size that cannot be exported as free; what is free is returned
            continue
    return _write(net, inputs, *last, path)


def _in_int8(net: nn.Module, path: str, settings: Int8) -> Int8Report:
    """Write the file anew, in int8."""
    import onnx

    try:
        model, report = Int8Search(net, onnx.load(path), settings).found()
    except ValueError as error:
        raise OnnxError(f"int8: {error}") from error
    except Exception as error:  # onnxruntime has its own hierarchy of errors
        raise OnnxError(f"int8: the float file fails on a batch: {_why(error)}") from error
    onnx.save(model, path)
    return report


_Way = tuple[dict[str, Any] | None, list[Inputs]]


def _ways(net: nn.Module, inputs: Inputs, dynamic: bool | Mapping[str, Sequence[int]]) -> list[_Way]:
    """Dimensions that may be free, with calls to try the file on; the most free first."""
    size = inputs.batch
    larger = [] if size is None else [inputs.cycled(size + 1)]
    if dynamic is False:
        return [(None, [])]
    others = free_sizes(net, inputs)
    trials = [*larger, *others.values()]
    if dynamic is not True:
        return [(named_shapes(net, inputs, dynamic), trials)]
    if size is None:
        return [(None, [])]
    most = [(dynamic_shapes(net, inputs, list(others)), trials)] if others else []
    return [*most, (dynamic_shapes(net, inputs), larger)]


def _write(net: nn.Module, inputs: Inputs, shapes: dict[str, Any] | None, trials: list[Inputs], path: str) -> Sizes:
    import onnx
    import onnxruntime

    traced = inputs.cycled(2) if shapes is not None else inputs
    try:
        program = torch.onnx.export(
            net,
            (*traced.args, {})
            if not traced.kwargs
            else traced.args,  # or a mapping at the end would be taken for kwargs
            kwargs=dict(traced.kwargs),
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
    except Exception as error:  # the exporter raises whatever the network's own code raises
        raise OnnxError(f"{type(net).__name__} cannot be exported: {_why(error)}") from error
    assert program is not None
    model = program.model_proto
    rename_sizes(model)
    onnx.save(model, path)
    onnx.checker.check_model(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what a trial fails with is raised, and need not be printed too
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own hierarchy of errors
        narrow = any(p.dtype == torch.bfloat16 for p in net.parameters())
        advice = "; it knows few layers in bfloat16, export net.float()" if narrow else ""
        raise OnnxError(f"onnxruntime refuses the file of {type(net).__name__}: {_why(error)}{advice}") from error
    found = Sizes({one.name: tuple(one.shape) for one in session.get_inputs()})
    for trial in (inputs, *trials):
        if _takes(found, trial):
            _compare(net, session, trial)
    return found


def _takes(found: Sizes, inputs: Inputs) -> bool:
    """Whether the file's fixed sizes are these."""
    pairs = zip(found.values(), inputs.shapes, strict=False)
    return all(a in (b, None) or isinstance(a, str) for old, new in pairs for a, b in zip(old, new, strict=False))


def _why(error: BaseException) -> str:
    """The first line of what went wrong first, with the next one where it ends in a colon."""
    while error.__cause__ is not None:
        error = error.__cause__
    line, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    told = " ".join([line, *others[:1]]) if line.endswith(":") else line
    return f"{type(error).__name__}: {told[:300]}"


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
    allowed = max([TOLERANCE, *(HALF.get(p.dtype, 0.0) for p in net.parameters())])
    for old, new in zip(_answers(net, inputs), found, strict=True):
        if old.shape != new.shape:
            raise OnnxError(f"the ONNX file gives {tuple(new.shape)} instead of {tuple(old.shape)} on inputs {shapes}")
        if not (apart := _apart(old, new)) <= allowed:
            if any(_apart(a, b) > allowed for a, b in zip(_answers(net, inputs), _answers(net, inputs), strict=True)):
                raise OnnxError(
                    f"this {type(net).__name__} draws random numbers in eval mode, so a file of it cannot be compared with it and "
                    "was not kept. Export one that does not, such as an autoencoder that takes the mean"
                )
            raise OnnxError(f"the ONNX file differs by {apart:.1e} on inputs of shape {shapes}; it was not kept")


def _answers(net: nn.Module, inputs: Inputs) -> list[Tensor]:
    return [t.detach().cpu() for t in pytree.tree_leaves(inputs.call(net)) if isinstance(t, Tensor)]


def _apart(old: Tensor, new: Tensor) -> float:
    return float((old.double() - new.double()).abs().max() / old.double().abs().max().clamp_min(1e-30))
