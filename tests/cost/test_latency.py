"""Timing: pairing, restoring what it touched, and the order of clearly different networks."""

from __future__ import annotations

import gc
import time

import pytest
import torch
from torch import Tensor, nn

from paring.cost import Latency, latency, ratio


class Sleeper(nn.Module):
    """Takes a known time and notes how it was called."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.drop = seconds, nn.Dropout()
        self.shapes: set[tuple[int, ...]] = set()
        self.seen: set[tuple[bool, bool, bool, int]] = set()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self.shapes |= {tuple(t.shape) for t in (x, y) if t is not None}
        self.seen.add((self.training, torch.is_inference_mode_enabled(), gc.isenabled(), torch.get_num_threads()))
        time.sleep(self.seconds)
        return x


def test_times_are_per_pass_and_ratios_paired() -> None:
    times = latency({"slow": Sleeper(4e-3), "fast": Sleeper(1e-3)}, torch.zeros(2, 3), repeats=8)
    assert list(times) == ["slow", "fast"]
    slow, fast = times["slow"], times["fast"]
    assert len(slow.runs) == len(fast.runs) == 8
    assert min(slow.runs) >= 4e-3
    assert min(fast.runs) >= 1e-3
    assert slow.p10 <= slow.median_s <= slow.p90
    assert ratio(slow, fast) > 1.5
    assert ratio(slow, fast) == pytest.approx(1 / ratio(fast, slow), rel=0.5)


def test_ratio_is_the_median_of_paired_ratios() -> None:
    def made(*runs: float) -> Latency:
        return Latency(0.0, 0.0, 0.0, runs)

    assert ratio(made(2, 30, 8), made(1, 10, 1)) == 3
    with pytest.raises(ValueError, match="3 and 2 runs"):
        ratio(made(1, 2, 3), made(1, 2))


def test_networks_take_turns() -> None:
    calls: list[str] = []

    class Noting(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.name)
            time.sleep(2e-3)  # one pass fills a sample
            return x

    latency({"a": Noting("a"), "b": Noting("b")}, torch.zeros(1), repeats=12, warmup=0)
    rounds = [tuple(calls[-24:][i : i + 2]) for i in range(0, 24, 2)]
    assert set(rounds) == {("a", "b"), ("b", "a")}


def test_modes_threads_and_collection_are_put_back() -> None:
    net = Sleeper(1e-3)
    net.drop.eval()  # a mixed state must come back mixed
    before = torch.get_num_threads()
    latency({"net": net}, torch.zeros(1), threads=2, repeats=2)
    assert net.seen == {(False, True, False, 2)}
    assert net.training
    assert not net.drop.training
    assert torch.get_num_threads() == before
    assert gc.isenabled()


def test_everything_is_put_back_after_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    net, before = Broken(), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="broken"):
        latency({"net": net}, torch.zeros(1), threads=before + 1)
    assert net.training
    assert torch.get_num_threads() == before
    assert gc.isenabled()


@pytest.mark.parametrize(("batch", "size"), [(None, 3), (1, 1), (7, 7)])
def test_batch(batch: int | None, size: int) -> None:
    net = Sleeper(2e-3)
    latency({"net": net}, (torch.zeros(3, 2), torch.zeros(3, 5)), batch=batch, repeats=1)
    assert net.shapes == {(size, 2), (size, 5)}


def test_a_thinner_network_is_measured_faster() -> None:
    wide, thin = (nn.Sequential(nn.Linear(512, n), nn.ReLU(), nn.Linear(n, 512)) for n in (1024, 64))
    times = latency({"wide": wide, "thin": thin}, torch.zeros(32, 512), repeats=9)
    assert ratio(times["thin"], times["wide"]) < 0.8


def test_errors() -> None:
    net = {"net": nn.Identity()}
    with pytest.raises(ValueError, match="no networks"):
        latency({}, torch.zeros(1))
    with pytest.raises(ValueError, match="batch is 0"):
        latency(net, torch.zeros(1), batch=0)
    with pytest.raises(ValueError, match="repeats is 0"):
        latency(net, torch.zeros(1), repeats=0)
    with pytest.raises(ValueError, match="threads is -1"):
        latency(net, torch.zeros(1), threads=-1)
    with pytest.raises(ValueError, match=r"shapes \(0, 3\)"):
        latency(net, torch.zeros(0, 3))
