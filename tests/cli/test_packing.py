"""`paring pack`, `unpack` and `info` on a small run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import paring as pr
from marks import BY_HAND
from paring import compression as kinds
from paring.cli import packing
from paring.cli.command import CommandError
from paring.cli.compress_progress import CompressProgress
from paring.cli.compressor_argument import parse_compressor
from paring.cli.main import main
from paring.cli.unpacking import entropy
from paring.compression import Step, smallest
from paring.core import Progress
from paring.files import File
from paring.models import build

pytestmark = BY_HAND

TRAIN = [
    "train",
    "--data",
    "digits",
    "--method",
    "gmp",
    "--density",
    "0.2",
    "--epochs",
    "4",
    "--threads",
    "1",
    "--quiet",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    assert main([*TRAIN, "--validation", "200", "--runs", str(root)]) == 0
    (folder,) = [path for path in root.iterdir() if path.is_dir()]
    return folder


def test_pack_info_unpack(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, back = tmp_path / "a.pare", tmp_path / "a.safetensors"
    assert main(["pack", str(run), "--out", str(path), "--quiet"]) == 0
    assert f"{path.stat().st_size:,} bytes, every number as it was" in capsys.readouterr().out
    assert main(["info", str(path), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "fc1.weight" in shown
    assert f"in {path.stat().st_size:,} bytes" in shown
    assert main(["unpack", str(path), "--out", str(back), "--quiet"]) == 0
    one, two = load_file(run / "small.safetensors"), load_file(back)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    factory = lambda: build("lenet_300_100", shape=(1, 8, 8), classes=10)  # noqa: E731
    assert isinstance(pr.load(factory, back), torch.nn.Module)


def test_pack_within_a_bound(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.pare"
    words = ["pack", str(run), "--out", str(path), "--compressor", "uniform:bits=8+6", "--threads", "1"]
    assert main([*words, "--max-loss-increase", "0.01", "--test"]) == 0
    said = capsys.readouterr()
    assert "validation (200 examples)" in said.out
    assert "test error" in said.out
    assert "may have been trained" not in said.err
    lossless = tmp_path / "b.pare"
    assert main(["pack", str(run), "--out", str(lossless), "--quiet"]) == 0
    assert path.stat().st_size < 0.5 * lossless.stat().st_size
    assert {entry.name for entry in File(path).entries} == {entry.name for entry in File(lossless).entries}


def test_units_go_first_then_bits(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Units go, the rest is rounded; the file loads into the stock modules at their new sizes."""
    path, back = tmp_path / "a.pare", tmp_path / "back.safetensors"
    words = [
        "pack",
        str(run),
        "--out",
        str(path),
        "--max-loss-increase",
        "0.1",
        "--max-error-increase",
        "inf",
        "--units",
        "0.4",
        "--lr",
        "1e-2",
        "--threads",
        "1",
    ]
    assert main([*words, "--compressor", "entropy_rounding:rates=1e-5,epochs=4"]) == 0
    said = capsys.readouterr()
    assert "stage=0" in said.err
    assert "rate=1e-05" in said.err
    assert main(["unpack", str(path), "--out", str(back)]) == 0
    net = pr.load(lambda: build("lenet_300_100", shape=(1, 8, 8), classes=10), back)
    assert net.get_parameter("fc2.weight").shape[1] < 300
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_loss_and_error_are_kept_by_default(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any loss, but no more errors: the second bound decides; without it the file is smaller."""
    kept, free = tmp_path / "kept.pare", tmp_path / "free.pare"
    words = [
        "pack",
        str(run),
        "--max-loss-increase",
        "100",
        "--compressor",
        "uniform:bits=8+6+5+4+3+2",
        "--threads",
        "1",
    ]
    assert main([*words, "--out", str(kept)]) == 0
    said = re.search(r"validation error ([\d.]+) % -> ([\d.]+) % \(bound \1 %\)", capsys.readouterr().out)
    assert said is not None
    assert float(said[2]) <= float(said[1])
    assert main([*words, "--out", str(free), "--max-error-increase", "inf", "--quiet"]) == 0
    assert free.stat().st_size < kept.stat().st_size


def test_the_default_is_the_smallest(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(smallest, "STEPS", 40)
    grid, path = tmp_path / "grid.pare", tmp_path / "a.pare"
    words = ["pack", str(run), "--max-loss-increase", "0.02", "--max-error-increase", "1", "--threads", "1"]
    assert main([*words, "--out", str(grid), "--compressor", "grid_rounding"]) == 0
    assert "rate=" not in capsys.readouterr().err
    assert main([*words, "--out", str(path)]) == 0
    assert "rate=1e-06" in capsys.readouterr().err
    assert path.stat().st_size < grid.stat().st_size


def test_interrupting_writes_the_best_so_far(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offered = CompressProgress.offered

    def stop(self: CompressProgress, progress: Progress) -> None:
        offered(self, progress)
        if progress.step.number == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(CompressProgress, "offered", stop)
    path = tmp_path / "a.pare"
    words = ["pack", str(run), "--out", str(path), "--max-loss-increase", "1", "--threads", "1"]
    assert main([*words, "--compressor", "uniform:bits=8+6+5+4"]) == 0
    said = capsys.readouterr().err
    assert said.count(" bytes  loss") == 2
    assert "interrupted: this is the best so far" in said
    assert path.exists()


def test_nothing_within_the_bound(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.pare"
    words = ["pack", str(run), "--out", str(path), "--max-loss-increase", "0", "--threads", "1"]
    assert main([*words, "--compressor", "kmeans:values=2"]) == 0
    assert "written as it is: none of 1 candidates kept the bound" in capsys.readouterr().err


def test_progress_in_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with CompressProgress("compressing it", True) as progress:
        progress.trained(Progress(30, 40))
        progress.offered(
            Progress(1, step=Step(0, {"rate": 1e-6}, 1234, 0.5, None, True, True, 1.0), net=torch.nn.Identity())
        )
    said = capsys.readouterr().err
    assert "1,234 bytes  loss 0.50000  best so far  rate=1e-06" in said
    assert "step 30 of 40" in said
    assert "75%" in said


def test_a_bound_that_does_not_hold_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The decoded network is measured again, whatever the compressor said."""
    path = tmp_path / "a.pare"
    path.write_bytes(b"old")
    right = packing.unpack

    def damaged(*given: object, **options: object) -> torch.nn.Module:
        net: torch.nn.Module = right(*given, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            next(net.parameters()).neg_()
        return net

    monkeypatch.setattr(packing, "unpack", damaged)
    words = ["pack", str(run), "--out", str(path), "--compressor", "uniform:bits=8", "--threads", "1", "--quiet"]
    assert main([*words, "--max-loss-increase", "0.01"]) == 1
    assert "was not written" in capsys.readouterr().err
    assert path.read_bytes() == b"old"


def test_refusals_say_why(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    out = ["--out", str(tmp_path / "x.pare")]
    lossy = ["pack", str(run), *out, "--max-loss-increase", "0", "--quiet"]
    for words, said in (
        (["pack", str(tmp_path / "none"), *out], "there is no such file"),
        (["pack", str(tmp_path / "a.safetensors"), *out, "--max-loss-increase", "0"], "--model (missing)"),
        (["pack", str(run), *out, "--max-loss-increase", "-1"], "at least 0"),
        (["pack", str(run), *out, "--max-loss-increase", "0", "--compressor", "zip"], "no such compressor"),
        ([*lossy, "--max-error-increase", "-1"], "at least 0"),
        ([*lossy, "--compressor", "kmeans:scope=foo"], "one of layer, kind, global"),
        ([*lossy, "--compressor", "smallest:rates=nan"], "has to be finite"),
        (["pack", str(run), "--out", str(tmp_path / "none" / "x.pare")], "make it first"),
        ([*lossy, "--units", "2"], "--units 2"),
        ([*lossy, "--compressor", "codebooks", "--distillation", "2"], "from 0 to 1"),
        ([*lossy, "--compressor", "codebooks", "--lr", "0"], "must be positive"),
        (["info", str(tmp_path / "a.safetensors")], "no .pare file"),
        (["unpack", str(tmp_path / "a.safetensors"), *out], "no .pare file"),
    ):
        assert main(words) in (1, 2)
        assert said in capsys.readouterr().err
    assert main(["pack", str(tmp_path / "a.safetensors"), *out, "--quiet"]) == 0
    for told in ("[1]", "5", "xx", '{"ties": 5}'):
        save_file({"a": torch.ones(3)}, tmp_path / "b.safetensors", {"paring": told})
        assert main(["pack", str(tmp_path / "b.safetensors"), *out, "--quiet"]) == 1
        assert "Save it again, or fetch it again" in capsys.readouterr().err


def test_compressors_are_read() -> None:
    assert parse_compressor("kmeans:values=16+8") == kinds.KMeans(values=(16, 8))
    assert parse_compressor("codebooks:values=8,zero=true,rate=0.5") == kinds.Codebooks(values=8, zero=True, rate=0.5)
    for wrong in ("kmeans:levels=3", "kmeans:values=x", "codebooks:zero=1", "codebooks:values"):
        with pytest.raises(CommandError):
            parse_compressor(wrong)


def test_entropy_of_a_tensor() -> None:
    assert entropy(torch.tensor([0.0, 0.0, 1.0, 2.0])) == (3, 1.5)
    assert entropy(torch.zeros(0)) == (0, 0.0)
    assert entropy(torch.tensor([True, False])) == (2, 1.0)


def test_state_of_a_wrapped_network_is_packed_like_its_own(tmp_path: Path) -> None:
    net = build("lenet_300_100", shape=(1, 8, 8), classes=10)
    state = AveragedModel(nn.DataParallel(net)).state_dict()
    lossy = ["--model", "lenet_300_100", "--data", "digits", "--max-loss-increase", "9", "--max-error-increase", "inf"]
    files = []
    for name, tensors in (("bare", net.state_dict()), ("wrapped", state)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        files.append(tmp_path / f"{name}.pare")
        words = [
            "pack",
            str(tmp_path / f"{name}.safetensors"),
            "--out",
            str(files[-1]),
            *lossy,
            "--threads",
            "1",
            "--quiet",
        ]
        assert main([*words, "--compressor", "uniform:bits=8"]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_gates_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    run = pr.attach(net, pr.L0(price=1e-3, at="units"), torch.randn(2, 8))
    save_file(net.state_dict(), tmp_path / "gated.safetensors")
    assert main(["pack", str(tmp_path / "gated.safetensors"), "--out", str(tmp_path / "x.pare"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "gates still in ('0.unit_gate." in said
    assert "run.finish()" in said
    assert not (tmp_path / "x.pare").exists()
    pr.save(run.finish(early=True), tmp_path / "small.safetensors")
    assert main(["pack", str(tmp_path / "small.safetensors"), "--out", str(tmp_path / "x.pare"), "--quiet"]) == 0
