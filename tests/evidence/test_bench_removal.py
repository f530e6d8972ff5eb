"""`python -m evidence bench removal`: ours is exact; what others do is reported as it is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from evidence.benches import removal
from evidence.benches.book import Asked
from evidence.benches.dead import KINDS, Kind
from evidence.benches.tools import FUSED
from paring.cli.results import load


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["lenet_300_100", "mlp_bn", "conv_bn"])
def test_ours_is_exact_and_smaller(model: str, kind: Kind) -> None:
    (row,) = removal.compare(model, kind, ["paring"], 2)
    assert row["status"] == "done"
    assert row["exact"]
    assert row["error"] <= 1e-5
    assert row["parameters"] < 0.6 * row["dense_parameters"]
    assert row["seconds"] > 0
    assert row["seconds_unverified"] > 0


def test_fused_norms_leave_as_little_as_the_tool_that_fuses() -> None:
    plain, fused = removal.compare("conv_bn", "zero", ["paring", FUSED], 1)
    assert fused["exact"]
    assert (plain["parameters"], fused["parameters"]) == (14_746, 14_666)


def test_torch_pruning_drops_constants() -> None:
    pytest.importorskip("torch_pruning")
    ours, theirs = removal.compare("lenet_300_100", "constant", ["paring", "Torch-Pruning"], 1)
    assert theirs["parameters"] == ours["parameters"]
    assert theirs["error"] > 1e-3
    assert not theirs["exact"]
    (zero,) = removal.compare("vit", "zero", ["Torch-Pruning"], 1)
    assert zero["exact"], "used rightly, heads included, it is exact where nothing is left behind"


def test_torch_simplify_takes_a_sum_of_zero_for_dead() -> None:
    if importlib.util.find_spec("simplify") is None:
        pytest.skip("torch-simplify comes with the extra 'bench'")
    (constant,) = removal.compare("lenet_300_100", "constant", ["torch-simplify"], 1)
    assert constant["exact"]
    (sign,) = removal.compare("lenet_300_100", "sign", ["torch-simplify"], 1)
    assert not sign.get("exact", False)
    if importlib.util.find_spec("torchvision") is None:
        assert not any(name.startswith("torchvision") for name in sys.modules), "the stand-ins are gone"


def test_a_tool_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    hidden = ("torch_pruning", "simplify")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else find(name))
    monkeypatch.setattr(removal, "MODELS", ("lenet_300_100",))
    torch.set_num_threads(2)
    path = removal.run(Asked(tmp_path, 2))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    rows = {(row["kind"], row["tool"]): row for row in load(path).rows}
    assert len(rows) == 9
    assert rows["zero", "paring"]["status"] == "done"
    assert {row["threads"] for row in rows.values()} == {1}
    assert rows["zero", "paring"]["cpu_seconds"] > 0
    assert rows["zero", "Torch-Pruning"]["status"] == (
        "not run: Torch-Pruning is not installed: pip install 'paring[bench]'"
    )
    assert "error" not in rows["zero", "torch-simplify"]
    capsys.readouterr()
    removal.run(Asked(tmp_path, 2))
    assert capsys.readouterr().out == "", "nothing is measured twice"


def test_a_network_that_its_tool_broke_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(net: object, x: object, dead: object) -> None:
        raise IndexError("out of\nrange")

    monkeypatch.setitem(removal.TOOLS, "Torch-Pruning", broken)
    (row,) = removal.compare("lenet_300_100", "zero", ["Torch-Pruning"], 2)
    assert row["status"] == "fails: IndexError: out of range"
    monkeypatch.setitem(removal.TOOLS, "paring", broken)
    with pytest.raises(IndexError):
        removal.compare("lenet_300_100", "zero", ["paring"], 1)


def test_a_busy_machine_is_said() -> None:
    row = {"run": "a", "error": 0.0, "parameters": 1, "dense_parameters": 2, "seconds": 2.0, "cpu_seconds": 1.0}
    assert removal._line(row).endswith("2.000 s (busy machine: 1.000 s of CPU time)")
    assert removal._line(row | {"cpu_seconds": 1.9}).endswith("2.000 s")
