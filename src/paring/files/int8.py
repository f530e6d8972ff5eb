"""int8 within a bound on what the network gives: which layers, with which ranges, beside the float file.

Ranges of activations are those with the least squared error on the batches. If the outputs are further from the float
network's than the bound, the layers that err most when they alone are int8 stay float, as few as need be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paring.core import Example, Inputs
from paring.files.qdq import Quantised, Range, Site, origins, sites

_SAMPLE = 1 << 16  # values of a tensor that are looked at, of each batch
_FEW = 4  # batches on which layers are tried alone


@dataclass(frozen=True)
class Int8:
    """How `to_onnx` writes int8.

    Attributes:
        batches: inputs as the network will see them, like the example; some hundred examples are enough.
        error: how far the outputs may be from the float network's on these: root of the mean square, as a share of that of
            the outputs. 0.1 is a cosine of 0.995.
    """

    batches: Sequence[Example]
    error: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.error < 1:
            raise ValueError(f"error is {self.error} but must lie between 0 and 1: a share of the outputs' size")

    @classmethod
    def of(cls, given: Int8 | Iterable[Example]) -> Int8:
        """Settings, or batches with the usual settings."""
        if isinstance(given, Int8):
            return given
        if isinstance(given, Tensor | str | bytes) or not isinstance(given, Iterable):
            raise TypeError(
                f"int8 takes a list of batches of inputs, or paring.files.Int8(batches), not a {type(given).__name__}"
            )
        return cls(list(given))


@dataclass(frozen=True)
class Int8Report:
    """What became of the layers.

    Attributes:
        layers: names of the weights, and whether each computes in int8.
        error: of the outputs, as in `Int8`.
        cosine: between the outputs and the float network's, the mean over examples.
        before: bytes of the float file.
        after: of this one.
    """

    layers: dict[str, bool]
    error: float
    cosine: float
    before: int
    after: int

    def __str__(self) -> str:
        kept = [name for name, yes in self.layers.items() if not yes]
        told = f"{len(self.layers) - len(kept)} of {len(self.layers)} layers in int8"
        told += f" (float: {', '.join(kept)})" if kept else ""
        return f"{told}; outputs off by {100 * self.error:.2g} %, cosine {self.cosine:.4f}; {self.before:,} -> {self.after:,} bytes"


class Int8Search:
    """The search on one float model.

    Args:
        net: the float network.
        model: its ONNX graph.
        settings: batches and bound.

    Raises:
        ValueError: no batches, a graph without layers that could be int8, or none that holds the bound.
    """

    def __init__(self, net: nn.Module, model: Any, settings: Int8) -> None:
        self.model, self.settings = model, settings
        self.names = [value.name for value in model.graph.input]
        batches = [Inputs.of(batch) for batch in settings.batches]
        if not batches:
            raise ValueError("int8 needs at least one batch of inputs to see what values the layers take")
        self.feeds = [self._feed(batch) for batch in batches]
        self.truth = [_floats(batch.call(net)) for batch in batches]
        self.sites = sites(model)
        if not self.sites:
            raise ValueError(f"no layer of this {type(net).__name__} has constant weights that could be int8")
        self.ranges = self._ranges()

    def _feed(self, batch: Inputs) -> dict[str, Any]:
        if len(batch.tensors) != len(self.names):
            raise ValueError(
                f"a batch for int8 holds {len(batch.tensors)} tensors, the network takes {len(self.names)}"
            )
        return {name: t.detach().cpu().numpy() for name, t in zip(self.names, batch.tensors, strict=True)}

    def found(self) -> tuple[Any, Int8Report]:
        """The model and what became of its layers."""
        import onnx

        kept = self._kept()
        if len(kept) == len(self.sites):
            raise ValueError(
                f"no layer can be int8 with outputs within {self.settings.error:g} of the float network's; allow more with "
                "paring.files.Int8(batches, error=...)"
            )
        chosen = [site for site in self.sites if site not in kept]
        model = Quantised(self.model, chosen, self.ranges).model
        onnx.checker.check_model(model)
        error, cosine = self._apart(model, len(self.feeds))
        layers = {site.weight: site not in kept for site in self.sites}
        return model, Int8Report(layers, error, cosine, self.model.ByteSize(), model.ByteSize())

    def _kept(self) -> Collection[Site]:
        """As few float layers as hold the bound, those first that err most alone."""
        every = len(self.feeds)

        def holds(kept: Collection[Site]) -> bool:
            model = Quantised(self.model, [site for site in self.sites if site not in kept], self.ranges).model
            return self._apart(model, every)[0] <= self.settings.error

        if holds(()):
            return ()
        alone = {site: self._apart(Quantised(self.model, [site], self.ranges).model, _FEW)[0] for site in self.sites}
        ranked = sorted(self.sites, key=lambda site: -alone[site])
        low, high = 0, len(ranked)  # too few float layers, enough
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(ranked[:middle]) else (middle, high)
        return ranked[:high]

    def _ranges(self) -> dict[str, Range]:
        """Of every tensor that goes through int8."""
        from onnx import ModelProto, helper

        names = sorted({site.x for site in self.sites} | {site.out for site in self.sites if site.kind == "Conv"})
        shown = ModelProto()
        shown.CopyFrom(self.model)
        graph = shown.graph
        known = {value.name for value in (*graph.input, *graph.output)}
        graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names if name not in known)
        run = session(shown)
        seen: dict[str, list[Any]] = {name: [] for name in names}
        inputs = set(self.names) & set(names)
        for feed in self.feeds:
            for name, value in zip(names, self._values(run, names, inputs, feed), strict=True):
                flat = value.ravel()
                picked = flat[:: max(1, len(flat) // _SAMPLE)]
                seen[name].append(np.concatenate([picked, [flat.min(), flat.max()]]))
        found = {name: Range.of(np.concatenate(parts).astype(np.float64)) for name, parts in seen.items()}
        return {name: found[origin] for name, origin in origins(self.model, names).items()}

    @staticmethod
    def _values(run: Any, names: list[str], inputs: Collection[str], feed: dict[str, Any]) -> list[Any]:
        wanted = [name for name in names if name not in inputs]
        found = dict(zip(wanted, run.run(wanted, feed) if wanted else [], strict=True))
        return [feed[name] if name in inputs else found[name] for name in names]

    def _apart(self, model: Any, batches: int) -> tuple[float, float]:
        """Error and cosine of the outputs on so many batches."""
        run, wrong, size, cosines = session(model), 0.0, 0.0, []
        for feed, truth in zip(self.feeds[:batches], self.truth, strict=False):
            found = [array for array in run.run(None, feed) if array.dtype.kind == "f"]
            for old, new in zip(truth, found, strict=True):
                old, new = (
                    array.astype(np.float64).reshape(max(1, len(array)) if array.ndim else 1, -1)
                    for array in (old, new)
                )
                wrong += float(np.square(old - new).sum())
                size += float(np.square(old).sum())
                lengths = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
                cosines += list((old * new).sum(1)[lengths > 0] / lengths[lengths > 0])
        return float(np.sqrt(wrong / max(size, 1e-30))), float(np.mean(cosines)) if cosines else 1.0


def session(model: Any) -> Any:
    """ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _floats(out: Any) -> list[Any]:
    leaves = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
    return [
        leaf.detach().cpu().numpy() for leaf in leaves if leaf.dtype in (torch.float32, torch.float64, torch.float16)
    ]
