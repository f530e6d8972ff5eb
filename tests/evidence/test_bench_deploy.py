"""`bench deploy`: what it thins, and how its rows are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evidence.benches.deployed import _random, _sparse, _thin
from evidence.benches.runtimes import OrtFile
from evidence.views.deploy_views import frontier, sparse_view, ways_view
from paring.cli.results import Results


def test_the_largest_weights_stay() -> None:
    layer = nn.Linear(10, 20)
    before = layer.weight.detach().clone()
    _thin(layer, 0.1)
    kept = layer.weight != 0
    assert int(kept.sum()) == 20
    assert before[kept].abs().min() > before[~kept].abs().max()


def test_a_row_of_zeros() -> None:
    row = _random(lambda: nn.Linear(64, 64), 0.1, (2, 64))(5)
    assert set(row["forms"]) <= {"dense", "packed", "CSR (MKL)"}
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert any(name.startswith("linear 1024×4096, 98% zeros") for name in _sparse())


def test_a_file_in_onnx_runtime(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    value = [onnx.helper.make_tensor_value_info(name, 1, ["n", 3]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "net.onnx")
    x = torch.randn(4, 3)
    assert torch.equal(OrtFile(tmp_path / "net.onnx")(x), -x)


def test_tables_and_the_frontier() -> None:
    told: dict[str, Any] = {"source": "measured", "kind": "ways", "model": "resnet8", "bytes": 12_300, "error": 9.876}
    told |= {"ms_1": 0.5, "ratio_1": 0.25, "low_1": 0.2, "high_1": 0.9, "ms_64": 8.0}
    told |= {"ratio_64": 0.5, "low_64": 0.45, "high_64": 0.55}
    rows = [{**told, "run": f"resnet8/{way}/PyTorch", "way": way, "runtime": "PyTorch"} for way in ("dense", "int8")]
    zeros: dict[str, Any] = {
        "run": "linear, 90% zeros",
        "source": "measured",
        "kind": "sparse",
        "dense_ms": 2.0,
        "ms": 0.5,
        "ratio": 4.0,
        "ratio_low": 3.9,
    }
    zeros |= {"ratio_high": 4.2, "forms": ["dense", "packed"]}
    results = Results("deploy", "command", [*rows, zeros])
    assert "| int8 | PyTorch | 12.3 kB | too noisy (1.1 to 5.0) | 2.0 (1.8 to 2.2) | 8 ms | 9.88 |" in ways_view(
        results
    )
    assert "linear, 90 % zeros | 2 ms | 0.5 ms | 4.0 (3.9 to 4.2) | dense, packed" in sparse_view(results)
    chart = frontier(results, "resnet8")
    assert chart is not None
    assert "ResNet-8" in chart
    assert frontier(results, "vit") is None
