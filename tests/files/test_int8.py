"""ONNX files in int8: what they compute, on which grid, and which layers stay float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from paring.files import Int8, OnnxError, to_onnx
from paring.files.int8 import Int8Search
from paring.files.qdq import Range, steps_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore")


class Mixed(nn.Module):
    """Convolutions with ReLU, pooling, groups and without; a linear layer on images and one on sequences."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False)
        self.head, self.rows = nn.Linear(72, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.max_pool2d(torch.relu(self.first(x)), 2)
        x = self.second(x)
        y = self.head(x.flatten(1)).relu()
        return self.rows(torch.stack([y, 2 * y], 1)), x


def batches(*shape: int, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, *shape, generator=generator) for _ in range(count)]


def outputs(path: Path, x: Tensor) -> list[Any]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


def off(found: Any, expected: Tensor) -> float:
    return float(np.linalg.norm(found - expected.detach().numpy()) / expected.detach().norm())


@pytest.mark.skipif(
    torch.__version__ < (2, 8), reason="torch 2.7 writes an opset that this test's reader does not know"
)
def test_a_network_of_several_kinds(tmp_path: Path) -> None:
    net, calibration = Mixed().eval(), batches(3, 14, 14)
    path = tmp_path / "net.onnx"
    sizes = to_onnx(net, calibration[0], path, int8=calibration)
    (size,) = sizes.values()
    assert size[1:] == (3, 14, 14)
    report = sizes.int8
    assert report is not None
    assert list(report.layers.values()) == [True] * 4
    assert 0 < report.error <= 0.1
    assert report.cosine > 0.995
    assert "4 of 4 layers in int8; outputs off by" in str(report)
    model = onnx.load(path)
    made = {name for node in model.graph.node for name in node.output}
    assert all(value.name in made for value in model.graph.output)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("DequantizeLinear") - kinds.count("QuantizeLinear") == 4 + 2  # weights, and biases of two
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert sum(kind == onnx.TensorProto.INT8 and name.endswith("levels") for name, kind in stored.items()) == 4
    x = torch.randn(5, 3, 14, 14)
    slow = onnx.reference.ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x.numpy()})
    for found, naive, true in zip(outputs(path, x), slow, net(x), strict=True):
        assert off(found, true) < 0.1
        assert off(found, torch.from_numpy(naive)) < 0.02  # a level here and there is rounded the other way


def test_on_a_grid_nothing_is_lost(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 30, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-127, 128, (30, 40)) * (0.01 * torch.rand(30, 1) + 0.001))
    levels, steps = steps_of(layer.weight.detach().numpy(), 0)
    assert np.abs(levels).max() == 127
    assert np.allclose(levels * steps[:, None], layer.weight.detach().numpy(), atol=1e-6)
    x = torch.randint(-3, 4, (16, 40)).float()
    x[0, 0], x[0, 1] = -127.0, 128.0  # a step of 1 for the inputs
    net = nn.Sequential(layer)
    to_onnx(net, x, tmp_path / "net.onnx", int8=[x])
    assert off(outputs(tmp_path / "net.onnx", x[1:])[0], net(x[1:])) < 1e-5


@given(st.integers(1, 6), st.integers(1, 50), st.integers(0, 1), st.integers(0, 99))
def test_weights_are_rounded_to_the_nearest_level(outputs: int, inputs: int, axis: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(outputs, inputs)).astype(np.float32)
    weight = weight if axis == 0 else weight.T.copy()
    levels, steps = steps_of(weight, axis)
    wide = steps[:, None] if axis == 0 else steps
    assert levels.dtype == np.int8
    assert (np.abs(levels * wide - weight) <= 0.5001 * wide).all()


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40))
def test_ranges_hold_zero_and_err_least(values: list[float]) -> None:
    sample = np.array(values)
    found = Range.of(sample)
    assert found.rounded(np.zeros(1))[0] == 0
    assert 0 <= found.zero <= 255
    whole = Range.between(min(0.0, sample.min()), max(0.0, sample.max()))
    wrong = [float(np.square(one.rounded(sample) - sample).sum()) for one in (found, whole)]
    assert wrong[0] <= wrong[1]


def test_an_outlier_is_cut_off_where_that_errs_less() -> None:
    sample = np.append(np.random.default_rng(0).normal(size=100_000), 40.0)
    assert Range.of(sample).step < 0.9 * Range.between(sample.min(), sample.max()).step


def test_layers_that_err_most_stay_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        net[2].weight[:, 0] = 1000 * net[2].weight[:, 1]  # a small input takes all levels
        net[0].weight[0], net[0].bias[0] = 1e-3 * net[0].weight[0], 0.0
    calibration = batches(16)
    sizes = to_onnx(net, calibration[0], tmp_path / "net.onnx", int8=Int8(calibration, error=0.1))
    assert sizes.int8 is not None
    assert list(sizes.int8.layers.values()) == [True, False, True]
    assert sizes.int8.error <= 0.1
    assert "2 of 3 layers in int8 (float: " in str(sizes.int8)


def test_what_cannot_be(tmp_path: Path) -> None:
    net, calibration, path = nn.Sequential(nn.Linear(16, 4)), batches(16), tmp_path / "net.onnx"
    to_onnx(net, calibration[0], path)
    before = path.read_bytes()
    model = onnx.load(path)
    for settings, says in (
        (Int8([]), "at least one batch"),
        (Int8([(calibration[0], calibration[0])]), "holds 2 tensors, the network takes 1"),
        (Int8(calibration, error=1e-7), "no layer can be int8 with outputs within 1e-07"),
    ):
        with pytest.raises(ValueError, match=says):
            Int8Search(net, model, settings).found()
    del model.graph.node[:]
    with pytest.raises(ValueError, match="no layer of this Sequential has constant weights"):
        Int8Search(net, model, Int8(calibration))
    with pytest.raises(TypeError, match="a list of batches"):
        to_onnx(net, calibration[0], path, int8=calibration[0])
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        Int8(calibration, error=2.0)
    with pytest.raises(OnnxError, match="int8: no layer can be int8"):
        to_onnx(net, calibration[0], path, int8=Int8(calibration, error=1e-7))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
