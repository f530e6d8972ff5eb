"""`python -m evidence bench bits`: layers and networks of bits against torch in float32, in time and in bytes.

Single layers: `ratio` compares the same layer with the same float32 input and output, so packing its input into bits and
unpacking its sums is part of its time; `ratio_inside` is from bits to bits, as between two layers of a network (scale,
bias and BatchNorm included; float32 has only the bare layer). `_cpu`: the same in CPU time of the process, which other
work on the machine does not lengthen. Networks: from images to class scores. Weights are random
signs; time depends on shapes only. Float32 counts with its faster memory format. All take turns in one process.

Bytes: of all parameters and buffers, and of `.pare` files of the float network, with even signs and with nine of ten
weights positive.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evidence.benches.book import Asked, Book
from evidence.benches.dead import randomise
from evidence.benches.runtimes import FORMATS, Formatted
from paring.bits import pack_bits
from paring.bits.bit_layers import Decode, Encode
from paring.bits.bits_report import size
from paring.bits.contract import BitLayer
from paring.cli.human import milliseconds
from paring.cost import compare_times, latency
from paring.files import write
from paring.hard import Sign
from paring.models import build

SKEWED = 0.9
_SAMPLE_S = 5e-3


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Args:
        make: the network: a unit, a layer, a norm, a unit; or a whole one.
        shape: of one example.
        batch: examples.
        layer: whether it is a single layer in the middle.
    """

    make: Callable[[], nn.Sequential]
    shape: tuple[int, ...]
    batch: int
    layer: bool = True


def linear(inputs: int, outputs: int, batch: int) -> Subject:
    """A linear layer between two signs."""
    return Subject(
        lambda: nn.Sequential(Sign(), nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), Sign()),
        (inputs,),
        batch,
    )


def convolution(inputs: int, outputs: int, side: int, batch: int) -> Subject:
    """A 3x3 convolution between two signs."""
    return Subject(
        lambda: nn.Sequential(
            Sign(), nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), Sign()
        ),
        (inputs, side, side),
        batch,
    )


def convnet8(batch: int) -> Subject:
    """ConvNet8 with sign activations; the weights of its first and last layer stay real."""

    def make() -> nn.Sequential:
        net = build("convnet8", shape=(3, 32, 32), classes=10, activation=Sign)
        assert isinstance(net, nn.Sequential)
        return net

    return Subject(make, (3, 32, 32), batch, layer=False)


SUBJECTS: dict[str, Subject] = {
    "linear-4096x4096-b1": linear(4096, 4096, 1),
    "linear-4096x4096-b64": linear(4096, 4096, 64),
    "conv-256x256x3x3-14x14": convolution(256, 256, 14, 1),
    "conv-256x256x3x3-14x14-b16": convolution(256, 256, 14, 16),
    "convnet8": convnet8(1),
    "convnet8-b64": convnet8(64),
}


def run(asked: Asked) -> Path:
    """Measure every subject of which the results file lacks a row with this number of threads."""
    book = Book(asked, "bits")
    for model, subject in SUBJECTS.items():
        name = f"{model}/{torch.get_num_threads()} threads"
        if book.wants(name):
            row = {"run": name, "model": model, **compare(subject, asked.repeats)}
            book.add(row)
            print(_line(row), flush=True)
    return book.close()


def compare(subject: Subject, repeats: int) -> dict[str, Any]:
    """Times and bytes of one subject, as a row without its name."""
    net = made(subject, 0.5)
    x = torch.randn(subject.batch, *subject.shape, generator=torch.Generator().manual_seed(1))
    packed = pack_bits(net, x)
    assert packed.report is not None
    bare: nn.Module = net
    if subject.layer:
        x = torch.where(x > 0, 1.0, -1.0)
        alone = pack_bits(net[:2].eval(), x)
        assert torch.equal(alone(x), net[1](x)), "the layers of bits and of floats differ"
        first, middle = alone.net.get_submodule("0"), packed.net.get_submodule("1")
        assert isinstance(middle, BitLayer)
        assert isinstance(packed.net.get_submodule("0"), Encode)
        assert any(isinstance(module, Decode) for module in packed.net.modules())
        ways: dict[str, nn.Module] = {"bits": alone, "inside": Held(middle, first(x))}
        bare = net[1:2]
    else:
        ways = {"bits": packed}
    formats = [name for name in FORMATS if x.dim() == 4 or name == "contiguous"]
    ways |= {name: Formatted(copy.deepcopy(bare), FORMATS[name]) for name in formats}
    times = latency(ways, x, threads=torch.get_num_threads(), repeats=repeats)
    cpu = cpu_seconds(ways, x, repeats)
    floats = min(formats, key=lambda name: statistics.median(cpu[name]))
    paired = [a / b for a, b in zip(times[floats].runs, times["bits"].runs, strict=True)]
    found: dict[str, Any] = {
        "batch": subject.batch,
        "milliseconds": 1e3 * times["bits"].median_s,
        "fp32_ms": 1e3 * times[floats].median_s,
        "ratio": compare_times(times[floats].runs, times["bits"].runs).said,
        "ratio_low": _quantile(paired, 0.25),
        "ratio_high": _quantile(paired, 0.75),
        "ratio_cpu": _median_ratio(cpu[floats], cpu["bits"]),
        "cpu_ms": 1e3 * statistics.median(cpu["bits"]),
        "fp32_cpu_ms": 1e3 * statistics.median(cpu[floats]),
        "format": floats,
        "repeats": repeats,
    }
    if subject.layer:
        found["inside_ms"] = 1e3 * times["inside"].median_s
        found["ratio_inside"] = compare_times(times[floats].runs, times["inside"].runs).said
        found["ratio_inside_cpu"] = _median_ratio(cpu[floats], cpu["inside"])
    return found | _bytes(subject, bare, packed)


class Held(nn.Module):
    """A layer of bits on bits that were made before."""

    def __init__(self, layer: BitLayer, bits: Tensor) -> None:
        super().__init__()
        self.layer, self.bits = layer, bits

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.bits)
        return out


@torch.no_grad()
def made(subject: Subject, share: float) -> nn.Sequential:
    """The subject with norms as after training and ±1 weights, this share of them positive.

    A whole network keeps the weights of its first and last layer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = subject.make().eval()
    generator = torch.Generator().manual_seed(0)
    randomise(net, generator)
    for module in _binary(subject, net):
        positive = torch.rand(module.weight.shape, generator=generator) < share
        module.weight.copy_(torch.where(positive, 1.0, -1.0))
    return net


def _binary(subject: Subject, net: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return layers if subject.layer else layers[1:-1]


def _bytes(subject: Subject, net: nn.Module, packed: nn.Module) -> dict[str, int]:
    """Bytes in float32, as bits, and in files with even and with skewed signs."""
    weights = sum(module.weight.numel() for module in _binary(subject, net))
    even, skewed = ((made(subject, share)[1:2] if subject.layer else made(subject, share)) for share in (0.5, SKEWED))
    words = sum(
        module.words.numel() * module.words.element_size()
        for module in packed.modules()
        if isinstance(module, BitLayer)
    )
    return {
        "weights": weights,
        "fp32_bytes": size(net),
        "bytes": size(packed),
        "weight_bytes": words,
        "pare_bytes": _file(even),
        "pare_bytes_skewed": _file(skewed),
    }


def _file(net: nn.Module) -> int:
    """Bytes of a `.pare` file of the network's state."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pare"
        write(path, iter(net.state_dict().items()), {})
        return path.stat().st_size


def cpu_seconds(nets: Mapping[str, nn.Module], x: Tensor, repeats: int) -> dict[str, list[float]]:
    """CPU seconds of this process for one pass of each network, all in turns.

    What other work on the machine takes from the clock does not count.
    """
    found: dict[str, list[float]] = {name: [] for name in nets}
    with torch.inference_mode():
        for _ in range(repeats):
            for name, net in nets.items():
                calls, started = 0, time.process_time()
                while time.process_time() - started < _SAMPLE_S:
                    net(x)
                    calls += 1
                found[name].append((time.process_time() - started) / calls)
    return found


def _median_ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(a, b, strict=True))


def _said(ratio: float | None) -> str:
    return "(too noisy to say how many)" if ratio is None else f"{ratio:.1f}"


def _quantile(values: list[float], q: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(q))


def _line(row: dict[str, Any]) -> str:
    inside = ""
    if "ratio_inside" in row:
        inside = f", inside {_said(row['ratio_inside'])} ({row['ratio_inside_cpu']:.1f})"
    return (
        f"{row['model']:<30}{milliseconds(row['fp32_ms']):>10} float32 {milliseconds(row['milliseconds']):>10} bits  "
        f"{_said(row['ratio'])} times as fast ({row['ratio_cpu']:.1f} in CPU time){inside}; {row['fp32_bytes']:,} -> {row['bytes']:,} bytes"
    )
