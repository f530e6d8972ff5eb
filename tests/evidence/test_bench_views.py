"""How the benchmarks' results are shown."""

from __future__ import annotations

from typing import Any

from evidence.views.views import VIEWS
from paring.cli.results import Results


def _lines(name: str, rows: list[dict[str, Any]], view: str = "rows") -> list[str]:
    measured = [{"run": str(index), "source": "measured", **row} for index, row in enumerate(rows)]
    return VIEWS[name, view](Results(name, f"python -m evidence bench {name}", measured)).splitlines()


def test_removal_puts_the_tools_side_by_side() -> None:
    case = {"model": "mlp_bn", "kind": "constant", "dense_parameters": 267_410}
    rows = [
        {
            **case,
            "tool": "paring",
            "status": "done",
            "error": 6.7e-8,
            "exact": True,
            "parameters": 9000,
            "seconds": 0.1,
        },
        {**case, "tool": "other", "status": "done", "error": 0.31, "exact": False, "parameters": 8000, "seconds": 0.02},
        {**case, "tool": "third", "status": "its network fails: RuntimeError: sizes", "parameters": 7000},
        {**case, "tool": "fourth", "status": "not run: fourth is not installed"},
    ]
    line = _lines("removal", rows)[2]
    assert line == (
        "| MLP with BatchNorm | constant | 267,410 | 7e-08 | 9,000 | 0.1 s | **3e-01** | 8,000 | 0.02 s "
        "| its network fails | 7,000 | – | not run | – | – |"
    )
    failures = _lines("removal", rows, "failures")
    assert failures[2:] == [
        "| MLP with BatchNorm | constant | third | its network fails: RuntimeError: sizes |",
        "| MLP with BatchNorm | constant | fourth | not run: fourth is not installed |",
    ]
    assert _lines("removal", rows[:2], "failures") == ["Every tool ran on all."]


def test_inference_leaves_out_what_missed_its_budget() -> None:
    base = {"model": "lenet5_caffe", "batch": 1, "runtime": "torch", "multiple_of": 8, "dense_macs": 1000}
    told = {"mac_ratio": 4.0, "ratio": 3.0, "realised": 0.75, "saved": 0.89, "dense_ms": 3.0, "milliseconds": 1.0}
    rows = [{**base, **told, "budget": 0.25, "macs": 250}, {**base, **told, "budget": 0.1, "macs": 300}]
    rows.append({**base, **told, "budget": 0.5, "macs": 520})
    whole, quarter = _lines("inference", rows), _lines("inference", rows, "quarter")
    assert len(whole) == 4
    assert len(quarter) == 3
    assert quarter[2] == "| LeNet-5-Caffe | 1 | PyTorch | 8 | 3 ms | 1 ms | 4.00× | 3.00× | 75 % | 89 % |"


def test_training_speed_groups_seeds() -> None:
    row = {"model": "lenet5_caffe", "data": "mnist", "method": "dense", "epochs": 20, "parameters": 431_080}
    row |= {"memory_order": "contiguous", "images": "as they are"}
    times = {"ratio": 1.0, "ratio_200": 1.0, "ratio_cpu_200": 1.0, "train_seconds": 60.0, "seconds_200": 600.0}
    times |= {"step_ms_first": 40.0, "step_ms_last": 40.0}
    rows: list[dict[str, Any]] = [{**row, **times, "seed": seed, "error": 0.8 + seed / 5} for seed in (0, 1)]
    small = {**row, **times, "method": "L0 + Shrink, budget 25 %", "seed": 0, "error": 0.9, "ratio_200": 2.5}
    lines = _lines("training-speed", [*rows, small])
    assert "epochs run" in lines[0]
    assert "| contiguous | as they are | dense |" in lines[2]
    assert "| 0.90 ± 0.14 |" in lines[2]
    assert lines[2].endswith("| 1.00× | 1.00× | 1.00× | 2 |")
    assert lines[3].endswith("| 1.00× | 2.50× | 1.00× | 1 |")


def test_sweeps_are_shares_of_the_serial_time() -> None:
    row = {"model": "lenet5_caffe", "trials": 4, "workers": 2, "trial_seconds": 60.0, "serial_seconds": 240.0}
    rows = [{**row, "executor": "processes", "seconds": 120.0, "ratio": 0.5, "seed": 0}]
    assert (
        _lines("sweep", rows)[2]
        == "| LeNet-5-Caffe | 4 | processes | 2 | 1 min 00 s | 4 min 00 s | 2 min 00 s | 50 % |"
    )
