"""Naive twin of ``paring.cost``: hand-built wirings, and the cost by plain loops over every weight."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from paring.analysis.wiring import Layer, Norm, Wiring
from paring.cost import Openness


class Builder:
    """Writes wirings by hand: each layer's columns name the units (ids) that they read."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.norms: list[Norm] = []
        self.units = 0

    def layer(
        self,
        name: str,
        weight: tuple[int, ...],
        sources: list[int],
        *,
        kind: str | None = None,
        bias: bool = True,
        groups: int = 1,
        positions: int = 1,
        labels: list[int] | None = None,
        norm: str | None = None,
        gateable: bool = True,
    ) -> list[int]:
        """Adds a layer and returns the labels of its units."""
        kind = kind or ("linear" if len(weight) == 2 else "conv")
        outputs = weight[1] if kind == "embedding" else weight[0]
        if labels is None:
            labels = list(range(self.units, self.units + outputs))
            self.units += outputs
        self.layers.append(
            Layer(
                name=name,
                kind=kind,
                weight=weight,
                bias=bias,
                outputs=outputs,
                inputs=len(sources),
                groups=groups,
                positions=positions,
                labels=torch.tensor(labels, dtype=torch.int64),
                sources=torch.tensor(sources, dtype=torch.int64),
                norm=norm,
                gateable=gateable,
                reason="" if gateable else "by hand",
            )
        )
        return labels

    def norm(self, name: str, labels: list[int], affine: bool = True) -> None:
        self.norms.append(Norm(name=name, kind="batch", labels=torch.tensor(labels), affine=affine))

    def wiring(self) -> Wiring:
        return Wiring(layers=tuple(self.layers), norms=tuple(self.norms), units=self.units)


def mlp(*widths: int) -> Wiring:
    """Linear layers fc1, fc2, ...; the last is not gateable."""
    b, labels = Builder(), [-1] * widths[0]
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths), 1):
        labels = b.layer(f"fc{i}", (n_out, n_in), labels, gateable=i < len(widths) - 1)
    return b.wiring()


def lenet5(conv1: int = 20, conv2: int = 50, flat: int | None = None, fc1: int = 500) -> Wiring:
    """LeNet-5-Caffe on 28x28: conv, pool, conv, pool, flatten (16 columns per map, or ``flat`` in all), fc, fc."""
    b = Builder()
    first = b.layer("conv1", (conv1, 1, 5, 5), [-1], positions=24 * 24)
    second = b.layer("conv2", (conv2, conv1, 5, 5), first, positions=8 * 8)
    columns = [unit for unit in second for _ in range(16)][:flat]
    third = b.layer("fc1", (fc1, len(columns)), columns)
    b.layer("fc2", (10, fc1), third, gateable=False)
    return b.wiring()


def small_nets() -> dict[str, Wiring]:
    """Tiny wirings with every feature that counting has to get right."""
    nets = {"mlp": mlp(3, 2, 2, 2)}

    b = Builder()  # conv, norm, flatten: two columns read one map, one map is read by nobody
    maps = b.layer("conv", (3, 2, 2, 1), [-1, -1], positions=4, bias=False, norm="bn")
    b.norm("bn", maps)
    b.norm("plain", maps, affine=False)
    b.layer("fc", (2, 4), [maps[0], maps[0], maps[1], maps[1]], gateable=False)
    nets["conv"] = b.wiring()

    b = Builder()  # groups, then depthwise
    maps = b.layer("stem", (4, 1, 1), [-1], positions=3)
    wide = b.layer("grouped", (2, 2, 2), maps, groups=2, positions=2)
    deep = b.layer("depthwise", (2, 1, 3), wide, groups=2, positions=5, bias=False)
    b.layer("out", (1, 2), deep, gateable=False)
    nets["groups"] = b.wiring()

    b = Builder()  # residual: stem and fc2 add up, so they share labels; the stream is also read by the head
    stream = b.layer("stem", (2, 2), [-1, -1])
    inner = b.layer("fc1", (2, 2), stream)
    b.layer("fc2", (2, 2), inner, labels=stream)
    b.layer("head", (1, 2), stream, gateable=False)
    nets["residual"] = b.wiring()

    b = Builder()  # a unit read by two layers and a unit read by something that is no layer
    words = b.layer("words", (3, 2), [], kind="embedding", bias=False, positions=7)
    shown = b.layer("shown", (2, 2), words, gateable=False)
    b.layer("left", (1, 2), words, gateable=False)
    b.layer("right", (1, 3), [*shown, -1], gateable=False)
    nets["branches"] = b.wiring()
    return nets


def _prob_open(given: dict[str, Tensor], name: str, index: tuple[int, ...]) -> float:
    return float(given[name][index]) if name in given else 1.0


def naive(wiring: Wiring, openness: Openness, drop_inputs: bool = True) -> dict[str, dict[str, float]]:
    """The table of ``CostModel`` from the formulas, one weight at a time."""
    units, inputs, weights = dict(openness.units), dict(openness.inputs), dict(openness.weights)

    def opened(label: int) -> float:
        if label < 0:
            return 1.0
        here = [(layer.name, o) for layer in wiring.layers for o, of in enumerate(layer.labels.tolist()) if of == label]
        return max((_prob_open(units, name, (o,)) for name, o in here), default=1.0)

    def read(label: int) -> float:
        if any(not layer.gateable and label in layer.labels.tolist() for layer in wiring.layers):
            return 1.0
        readers = [
            (layer.name, j) for layer in wiring.layers for j, of in enumerate(layer.sources.tolist()) if of == label
        ]
        return 1.0 - math.prod(1.0 - _prob_open(inputs, name, (j,)) for name, j in readers) if readers else 1.0

    table = {}
    for layer in wiring.layers:
        need = [_prob_open(units, layer.name, (o,)) * read(int(layer.labels[o])) for o in range(layer.outputs)]
        q = []
        for j in range(layer.inputs):
            source = int(layer.sources[j])
            gate = 1.0 if source < 0 and not drop_inputs else _prob_open(inputs, layer.name, (j,))
            q.append(gate * opened(source))
        total = 0.0
        for index in itertools.product(*map(range, layer.weight)):
            w = _prob_open(weights, layer.name, index)
            if layer.kind == "embedding":
                total += w * need[index[1]]
            else:
                group = index[0] // (layer.outputs // layer.groups)
                total += w * need[index[0]] * q[group * (layer.inputs // layer.groups) + index[1]]
        biases = sum(need) * layer.bias
        macs = 0.0 if layer.kind == "embedding" else total * layer.positions
        adds = 0.0 if layer.kind == "embedding" else macs + biases * layer.positions
        columns = layer.weight[0] if layer.kind == "embedding" else sum(q)
        table[layer.name] = {
            "outputs": sum(need),
            "inputs": columns,
            "weights": total,
            "biases": biases,
            "parameters": total + biases,
            "macs": macs,
            "adds": adds,
        }
    for n in wiring.norms:
        kept = sum(opened(int(c)) * read(int(c)) for c in n.labels)
        table[n.name] = dict.fromkeys(("weights", "biases", "macs", "adds"), 0.0)
        table[n.name] |= {"outputs": kept, "inputs": kept, "parameters": 2 * kept * n.affine}
    return table


def configurations(openness: Openness, tied: tuple[str, ...] = ()) -> Iterator[tuple[float, Openness]]:
    """Every 0/1 setting of independent gates, with its probability; unit gates of ``tied`` layers move together."""
    places = []
    for place in ("units", "inputs", "weights"):
        for name, chances in getattr(openness, place).items():
            if not (place == "units" and name in tied[1:]):
                places.append((place, name, chances))
    chances = [float(c) for _, _, part in places for c in part.flatten()]
    for bits in itertools.product((0.0, 1.0), repeat=len(chances)):
        p = math.prod(c if b else 1 - c for b, c in zip(bits, chances, strict=True))
        setting: dict[str, dict[str, Tensor]] = {"units": {}, "inputs": {}, "weights": {}}
        rest = list(bits)
        for place, name, part in places:
            setting[place][name] = torch.tensor(rest[: part.numel()], dtype=torch.float64).view(part.shape)
            del rest[: part.numel()]
        for name in tied[1:]:
            setting["units"][name] = setting["units"][tied[0]]
        yield p, Openness(**setting)
