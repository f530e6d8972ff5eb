"""A float ONNX graph as one of int8: QuantizeLinear and DequantizeLinear around the layers with weights.

Weights are int8 with a step per output, activations uint8 with a step and a zero point per tensor. Runtimes that know the
pattern (ONNX Runtime, OpenVINO, TensorRT) multiply whole numbers there; for all others it says what they would give.
Weights get 127 levels, not 255: sums of two products of 8 bits overflow the 16 bits that x86 without VNNI adds them in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

WEIGHT_LEVEL = 63  # largest of a weight
_GRID_LEVEL = 127  # largest of a weight that lay on a grid already
_CHANNEL = {"MatMul": 1, "Conv": 0}  # dimension of the outputs in the weight
_PASSES = ("Relu", "Clip")  # what runtimes take into a convolution
_MOVES = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")  # what gives numbers that it was given


@dataclass(frozen=True)
class Site:
    """A node with a constant weight.

    Attributes:
        node: name of its own output.
        kind: MatMul, Gemm or Conv.
        x: name of what it reads.
        weight: name of its constant.
        bias: name of its constant; empty where it has none.
        out: name of what comes behind what is computed along with it.
        axis: dimension of the outputs in the weight.
    """

    node: str
    kind: str
    x: str
    weight: str
    bias: str
    out: str
    axis: int


@dataclass(frozen=True)
class Range:
    """What a tensor of activations may hold: value = step (level - zero), levels from 0 to 255."""

    step: float
    zero: int

    @classmethod
    def of(cls, sample: Any) -> Range:
        """The range with the least squared error on a sample of the values, from all of it down to a tenth."""
        low, high = min(0.0, float(sample.min())), max(0.0, float(sample.max()))
        tried = [cls.between(low * share, high * share) for share in np.linspace(1.0, 0.1, 19)]
        return min(tried, key=lambda one: float(np.square(one.rounded(sample) - sample).sum()))

    @classmethod
    def between(cls, low: float, high: float) -> Range:
        """0 is a level."""
        step = float(np.float32((high - low) / 255 or 1.0))
        return cls(step, int(np.clip(np.rint(-low / step), 0, 255)))

    def rounded(self, values: Any) -> Any:
        """As they come back."""
        return self.step * (np.clip(np.rint(values / self.step) + self.zero, 0, 255) - self.zero)


def sites(model: Any) -> list[Site]:
    """The nodes of a graph that can compute in int8."""
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer if tensor.data_type == 1}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}
    found = []
    for node in model.graph.node:
        if node.op_type not in (*_CHANNEL, "Gemm") or len(node.input) < 2:
            continue
        x, weight, bias = (*node.input, "")[:3]
        if weight not in constants or x in constants or len(readers[weight]) > 1 or (bias and bias not in constants):
            continue
        given = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Gemm" and not _is_linear(given):
            continue
        if len(constants[weight]) < 2 or (node.op_type != "Conv" and len(constants[weight]) != 2):
            continue
        out, axis = node.output[0], _CHANNEL.get(node.op_type, 0 if "transB" in given and given["transB"].i else 1)
        if node.op_type == "Conv" and out not in outputs and len(readers.get(out, ())) == 1:
            (follower,) = readers[out]
            out = follower.output[0] if follower.op_type in _PASSES else out
        found.append(Site(node.output[0], node.op_type, x, weight, bias, out, axis))
    return found


def _is_linear(given: Mapping[str, Any]) -> bool:
    """Whether a Gemm adds the product and the bias as they are, and reads its input as it lies."""
    plain = all(given[name].f == 1.0 for name in ("alpha", "beta") if name in given)
    return plain and not ("transA" in given and given["transA"].i)


def origins(model: Any, names: Collection[str]) -> dict[str, str]:
    """For each of these tensors the one, of these too, of which it holds the numbers in another place; itself where there is none."""
    source = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type in _MOVES}
    found = {}
    for name in names:
        at = last = name
        while at in source:
            at = source[at]
            last = at if at in names else last
        found[name] = last
    return found


def steps_of(weight: Any, axis: int) -> tuple[Any, Any]:
    """Whole numbers and a step per output so that their product is the weight, or near it.

    A weight that lies on such a grid already (at most 127 steps from zero) keeps it.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    largest = np.abs(rows).max(1)
    least = largest[largest > 0].min(initial=WEIGHT_LEVEL if not largest.any() else np.inf)
    steps = np.where(largest > 0, largest, least) / WEIGHT_LEVEL
    for number, row in enumerate(rows):
        if step := _grid(row):
            steps[number] = step
    steps = steps.astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.rint(weight / steps.reshape(shape)).astype(np.int8), steps


def _grid(row: Any) -> float:
    """The step of which all numbers are multiples, at most 127 of it; 0 for none."""
    values = np.unique(np.abs(row[:: max(1, len(row) // 1024)]))
    values = values[values > 0]
    if not len(values) or len(values) > _GRID_LEVEL:
        return 0.0
    gaps = np.diff(values, prepend=0.0)
    step = float(gaps[gaps > 1e-3 * values[-1] / _GRID_LEVEL].min())
    levels = np.rint(row / step)
    most = float(np.abs(levels).max())
    if not 1 < most <= _GRID_LEVEL:
        return 0.0
    step = float(np.dot(row, levels) / np.dot(levels, levels))  # the gaps are rounded, the levels are not
    return step if np.abs(row - step * levels).max() <= 1e-5 * np.abs(row).max() else 0.0


class Quantised:
    """A copy of a graph in which some sites compute in int8.

    Attributes:
        model: the graph.
    """

    def __init__(self, model: Any, found: Collection[Site], ranges: Mapping[str, Range]) -> None:
        from onnx import ModelProto, numpy_helper

        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.ranges, self.helper = ranges, numpy_helper
        self.constants = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.taken: dict[str, str] = {}
        chosen, behind = {site.node: site for site in found}, {site.out for site in found if site.kind == "Conv"}
        nodes: list[Any] = []
        for node in self.model.graph.node:
            site = chosen.get(node.output[0])
            if site is not None:
                nodes += self._site(node, site)
            for index, name in enumerate(node.input):
                if name in self.taken and name in behind:
                    node.input[index] = self.taken[name]
            nodes.append(node)
            nodes += [made for name in node.output if name in behind for made in self._activation(name)]
        self._results(nodes, behind)
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)

    def _site(self, node: Any, site: Site) -> list[Any]:
        made = self._activation(site.x)
        node.input[0] = self.taken[site.x]
        weight = self.helper.to_array(self.constants[site.weight])
        levels, steps = steps_of(weight, site.axis)
        made.append(self._constant(site.weight, levels, steps, site.axis))
        node.input[1] = self.taken[site.weight]
        if site.bias:
            wide = steps.astype(np.float64) * self.ranges[site.x].step
            bias = np.rint(self.helper.to_array(self.constants[site.bias]).reshape(-1) / wide)
            if np.abs(bias).max(initial=0) < 2**31 and len(bias) == len(wide):
                name = f"{site.bias}_{site.node}"
                made.append(self._constant(name, bias.astype(np.int32), wide.astype(np.float32), 0, site.bias))
                node.input[2] = self.taken[name]
        return made

    def _constant(self, name: str, levels: Any, steps: Any, axis: int, old: str = "") -> Any:
        """The node that gives a constant back from its levels; the old constant goes where nobody else reads it."""
        from onnx import helper

        graph = self.model.graph
        zero = np.zeros(len(steps), dtype=levels.dtype)
        parts = {f"{name}_levels": levels, f"{name}_steps": steps, f"{name}_zero": zero}
        graph.initializer.extend(self.helper.from_array(array, part) for part, array in parts.items())
        old = old or name
        if sum(list(node.input).count(old) for node in graph.node) == 1 and old in self.constants:
            graph.initializer.remove(self.constants.pop(old))
        self.taken[name] = f"{name}_given"
        return helper.make_node(
            "DequantizeLinear", list(parts), [self.taken[name]], name=f"{name}_dequantise", axis=axis
        )

    def _activation(self, name: str) -> list[Any]:
        """The two nodes through which a tensor goes; none where it does already."""
        from onnx import helper

        if name in self.taken:
            return []
        found, levels, self.taken[name] = self.ranges[name], f"{name}_levels", f"{name}_given"
        step, zero = f"{name}_step", f"{name}_zero"
        self.model.graph.initializer.extend(
            [
                self.helper.from_array(np.array(found.step, dtype=np.float32), step),
                self.helper.from_array(np.array(found.zero, dtype=np.uint8), zero),
            ]
        )
        return [
            helper.make_node("QuantizeLinear", [name, step, zero], [levels], name=f"{name}_quantise"),
            helper.make_node("DequantizeLinear", [levels, step, zero], [self.taken[name]], name=f"{name}_dequantise"),
        ]

    def _results(self, nodes: list[Any], behind: Collection[str]) -> None:
        """An output of the graph keeps its name: what makes it gets another one."""
        for value in self.model.graph.output:
            if value.name not in behind:
                continue
            inner = f"{value.name}_float"
            for node in nodes:
                made = node.name == f"{value.name}_dequantise"
                for index, name in enumerate(node.input):
                    node.input[index] = inner if name == value.name else name
                for index, name in enumerate(node.output):
                    if made:
                        node.output[index] = value.name
                    elif name == value.name:
                        node.output[index] = inner
                for index, name in enumerate(node.input):
                    node.input[index] = value.name if name == self.taken[value.name] else name
