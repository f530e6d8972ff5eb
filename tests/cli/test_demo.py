"""The demo, with a few epochs: files, numbers that agree with the files, and a page that loads nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from marks import CUT_SHORT
from paring.cli import demo
from paring.data import load as load_data
from paring.files import load
from paring.testing import is_stock
from paring.train import evaluate

pytestmark = CUT_SHORT

SIDE = {"error", "parameters", "macs", "nonzeros", "bytes", "train_seconds", "latency_ms", "latency_128_ms"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo") / "deep" / "er"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "RECIPE", replace(demo.RECIPE, epochs=3))
        result = demo.run(out, 5, progress=False)
    torch.set_num_threads(threads)
    return out, result


def test_files_and_keys(made: tuple[Path, dict[str, Any]]) -> None:
    out, result = made
    assert {path.name for path in out.iterdir()} == {
        "result.json",
        "metrics.jsonl",
        "report.html",
        "small.safetensors",
        "dense.safetensors",
    }
    assert json.loads((out / "result.json").read_text()) == result
    assert SIDE == set(result["dense"]) == set(result["small"])
    assert result["seed"] == 5
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3


def test_the_proof(made: tuple[Path, dict[str, Any]]) -> None:
    _, result = made
    assert result["tolerance"] == 1e-5
    assert 0 <= result["max_abs_diff"] <= 1e-5


def test_numbers_agree_with_the_files(made: tuple[Path, dict[str, Any]]) -> None:
    out, result = made
    data = load_data("digits")
    for side, name in (("dense", "dense.safetensors"), ("small", "small.safetensors")):
        net = load(lambda: demo.build_small(0, data), out / name)
        numbers = result[side]
        assert is_stock(net)
        assert numbers["parameters"] == sum(p.numel() for p in net.parameters())
        assert numbers["macs"] == sum(p.numel() for p in net.parameters() if p.dim() == 2)
        assert numbers["nonzeros"] == sum(int(p.count_nonzero()) for p in net.parameters())
        assert numbers["bytes"] == (out / name).stat().st_size
        assert numbers["error"] == evaluate(net.eval(), data.test)[1]
        assert numbers["latency_ms"] > 0
    for key in ("speed_latency_ms", "speed_latency_128_ms"):
        assert result[key]["ratio"] is None or result[key]["low"] <= result[key]["ratio"] <= result[key]["high"]
    assert result["dense"]["parameters"] == result["dense_parameters"] == 50_610
    assert result["dense"]["macs"] == result["dense_macs"]
    share = result["small"]["parameters"] / result["dense"]["parameters"]
    assert 0.98 * 0.15 < share <= 0.15, "the budget that METHOD asks for"


def test_the_page_is_whole_and_loads_nothing(made: tuple[Path, dict[str, Any]]) -> None:
    document = (made[0] / "report.html").read_text(encoding="utf-8")
    assert document.rstrip().endswith("</html>")
    assert f"{made[1]['small']['parameters']:,}" in document
    assert '"callout good"' in document
    loads = re.findall(r"""(?:src|href|data|action)\s*=\s*["'](?!#)[^"']*|@import|url\((?!#)[^)]*""", document)
    assert loads == []
    assert not re.search(r"<(script|iframe|link|object|embed|img)\b", document)


def test_a_wrong_small_network_is_never_passed_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "RECIPE", replace(demo.RECIPE, epochs=1))
    monkeypatch.setattr(demo, "latency", lambda nets, *_, **__: {name: _Timed() for name in nets})
    monkeypatch.setattr(demo, "outputs_differ", lambda *_: float("nan"))
    with pytest.raises(RuntimeError, match="differs from the gated one by nan, more than 1e-05; this is a bug"):
        demo.run(tmp_path, 0, progress=False)


class _Timed:
    median_s, runs, cpu = 1e-3, (1e-3,), ()


def test_it_prints_both_sides_and_the_proof(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: tuple[Path, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, result = made
    monkeypatch.setattr(demo, "run", lambda out, seed: result)
    assert demo.main(tmp_path, 5) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("parameters")).split()
    assert row == ["parameters", "50,610", f"{result['small']['parameters']:,}"]
    assert sum("proof: read back from disk" in line for line in lines) == 1
    assert f"speed at batch 1, one thread: {result['speed_latency_ms']['text']}" in lines
