"""Ways to run a network for its answers: PyTorch in either memory format, and ONNX Runtime (extra `bench`)."""

from __future__ import annotations

import copy
import importlib.util
import io
import logging
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Formatted(nn.Module):
    """A network and its input in one memory format; bringing the input there is part of the work."""

    def __init__(self, net: nn.Module, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.net = net.to(memory_format=memory_format)  # type: ignore[call-overload]
        self.memory_format = memory_format

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x.contiguous(memory_format=self.memory_format))
        return out


class Session(nn.Module):
    """An ONNX Runtime session on one thread with the call of a module; it takes the batch size of its example."""

    def __init__(self, net: nn.Module, example: Tensor) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = torch.get_num_threads()
        self.session: Any = onnxruntime.InferenceSession(
            _onnx(net, example), options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {self.input: x.numpy()})[0])


class OrtFile(nn.Module):
    """An ONNX file in ONNX Runtime, on as many threads as torch, with the call of a module."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = torch.get_num_threads()
        self.session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [one.name for one in self.session.get_inputs()]

    def forward(self, *inputs: Tensor) -> Tensor:
        feed = {name: x.numpy() for name, x in zip(self.inputs, inputs, strict=True)}
        return torch.from_numpy(self.session.run(None, feed)[0])


class OpenVino(nn.Module):
    """The same in OpenVINO."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        import openvino

        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
        core = openvino.Core()
        self.request: Any = core.compile_model(core.read_model(str(path)), "CPU", settings).create_infer_request()

    def forward(self, x: Tensor) -> Tensor:
        self.request.infer([x.numpy()])
        return torch.from_numpy(self.request.get_output_tensor(0).data.copy())


def _onnx(net: nn.Module, example: Tensor) -> bytes:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            program = torch.onnx.export(net, (example,), dynamo=True, verbose=False)
    finally:
        logger.setLevel(level)
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def has_onnxruntime() -> bool:
    """Whether ONNX Runtime and what PyTorch needs to export to it are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime"))


def variants(net: nn.Module, example: Tensor) -> dict[str, dict[str, nn.Module]]:
    """Per runtime, the ways to run a copy of the network there; a network counts with its fastest way."""
    found: dict[str, dict[str, nn.Module]] = {
        "torch": {name: Formatted(copy.deepcopy(net).eval(), form) for name, form in FORMATS.items()}
    }
    if has_onnxruntime():
        found["onnxruntime"] = {"session": Session(copy.deepcopy(net).eval(), example)}
    return found
