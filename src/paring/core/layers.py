"""Gated layers: stock layers whose class is swapped, so that keys, copies, pickles and exports stay as they were.

`put` swaps the class of one stock layer and hangs a gate on it; `release` multiplies the test-time gates into the
weights and swaps the stock class back. The parameter keys (`weight`, `bias`) never change; a gate's parameters appear
beside them (`unit_gate.…`, `input_gate.…`, `weight_gate.…`).

Four places:

* `units`: z of shape (units,) multiplies each output unit after the layer's bias. A closed unit is exactly zero.
* `inputs`: z of shape (inputs,) multiplies each input feature or channel.
* `weights`: z of the weight's shape multiplies each weight.
* `blocks`: z of shape (1,) multiplies all that the layer gives, the last one of a residual branch.

`share` hangs one unit gate on several layers, through a `SharedGate` on each.

For convolutions and norms one sample per minibatch multiplies the parameters (same function as multiplying the maps,
and much cheaper); linear layers multiply activations, which are smaller than their weights (but the first one, whose
input needs no gradient, its weight). One sample per example always multiplies activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.core.gate import Gate, noise_dtype

PlaceKind = Literal["units", "inputs", "weights", "blocks"]
_LEAST_VARIANCE = 1e-16  # keeps the slope of the square root finite where nothing is active


class Gated(nn.Module):
    """What all gated layers share: up to one gate per place, and one for each of the weights that a layer packs together."""

    unit_gate: Gate | None
    input_gate: Gate | None
    weight_gate: Gate | None
    block_gate: Gate | None
    weight_gates: nn.ModuleDict | None

    def gates(self) -> dict[PlaceKind, Gate]:
        """What multiplies this layer by place; a `SharedGate` stands for gates that other layers hold too.

        Without those of packed weights, of which there are several: see `held`.
        """
        found = {"units": self.unit_gate, "inputs": self.input_gate, "weights": self.weight_gate}
        found["blocks"] = self.block_gate
        return {cast(PlaceKind, kind): gate for kind, gate in found.items() if gate is not None}

    def at_weights(self) -> dict[str, Gate]:
        """Gates at "weights", by the parameter that each of them changes: "weight", or those of `Kind.packed`."""
        found = {} if self.weight_gate is None else {"weight": self.weight_gate}
        packed = () if self.weight_gates is None else self.weight_gates.items()
        return found | {leaf_of(key): cast(Gate, gate) for key, gate in packed}

    def held(self) -> Iterator[tuple[PlaceKind, str, Gate]]:
        """(place, leaf, gate) for all gates; leaf: the parameter behind a gate at "weights", else ""."""
        for kind, gate in self.gates().items():
            yield kind, "weight" if kind == "weights" else "", gate
        for leaf, gate in self.at_weights().items():
            if gate is not self.weight_gate:
                yield "weights", leaf, gate

    def multiply_inputs(self, x: Tensor) -> Tensor:
        if self.input_gate is None or self.input_gate.transparent:
            return x
        return along(x, self.input_gate(x.shape[0]), self.feature_axis(x))

    def multiply_units(self, y: Tensor) -> Tensor:
        if self.unit_gate is None or self.unit_gate.transparent:
            return y
        return along(y, self.unit_gate(y.shape[0]), self.feature_axis(y))

    def multiply_result(self, y: Tensor) -> Tensor:
        """The layer's result times the gate of its branch."""
        if self.block_gate is None or self.block_gate.transparent:
            return y
        return along(y, self.block_gate(y.shape[0]), y.dim() - 1)

    def gated_weight(self, weight: Tensor) -> Tensor:
        if self.weight_gate is None or self.weight_gate.transparent:
            return weight
        return self.weight_gate.see(weight)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of a norm, times the unit gate where that is the same for the whole batch."""
        weight, bias = cast(Tensor, self.weight), cast(Tensor, self.bias)
        if not whole_batch(self.unit_gate):
            return weight, bias
        assert self.unit_gate is not None
        z = self.unit_gate().to(weight.dtype)
        return weight * z, bias * z

    def add_noise(self, y: Tensor, weight: Tensor, spread: Callable[[Tensor], Tensor]) -> Tensor:
        """The layer's output with the noise of its weight; `spread` maps the variance of the weight to that of `y`."""
        variance = None if self.weight_gate is None else self.weight_gate.variance(weight)
        if variance is None:
            return y
        deviation = (spread(variance) + _LEAST_VARIANCE).sqrt()
        noise = torch.randn(deviation.shape, device=deviation.device, dtype=noise_dtype(deviation.dtype))
        return y + deviation * noise.to(deviation.dtype)

    def feature_axis(self, x: Tensor) -> int:
        """Axis of `x` that carries the features (last for linear layers and embeddings, 1 for channels)."""
        return x.dim() - 1


def key_of(leaf: str) -> str:
    """The key under which a gate on a packed weight is kept; it cannot have a dot in it."""
    return leaf.replace(".", "__")


def leaf_of(key: str) -> str:
    """The packed weight whose gate has this key."""
    return key.replace("__", ".")


def along(x: Tensor, z: Tensor, axis: int) -> Tensor:
    """`x` times `z` along `axis`; z is (features,) or (batch, features)."""
    shape = [1] * x.dim()
    shape[axis] = z.shape[-1]
    if z.dim() == 2:
        shape[0] = z.shape[0]
    return x * z.view(shape).to(x.dtype)


class GatedCall(Gated):
    """Gates round the forward of any layer that takes its input first: `class GatedMine(GatedCall, Mine)`.

    What goes in and what comes out is multiplied, and the forward sees the gated weight. Noise on weights it cannot show.
    """

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x, seen = self.multiply_inputs(input), self.weight_gate is not None and not self.weight_gate.transparent
        if seen:
            self.__dict__["weight"] = self.gated_weight(cast(Tensor, self.weight))  # seen before the parameter
        try:
            y: Tensor = super().forward(x, *args, **kwargs)
        finally:
            if seen:
                del self.__dict__["weight"]
        return self.multiply_result(self.multiply_units(y))

    def feature_axis(self, x: Tensor) -> int:
        return x.dim() + 1 - cast(Tensor, self.weight).dim()  # what is behind the first two dimensions is the kernel's


def _noisy(gate: Gate | None) -> bool:
    return gate is not None and gate.noisy


def whole_batch(gate: Gate | None) -> bool:
    """True when the gate multiplies something and its multiplier does not depend on the example."""
    return gate is not None and not gate.transparent and not (gate.per_example and gate.training)


class GatedLinear(Gated, nn.Linear):
    """`nn.Linear` with gates."""

    def forward(self, input: Tensor) -> Tensor:
        x, weight = input, self.gated_weight(self.weight)
        spare = torch.is_grad_enabled() and not input.requires_grad
        if spare and whole_batch(self.input_gate) and not _noisy(self.weight_gate):
            assert self.input_gate is not None  # the first layer: spare it a gradient of its input
            weight = weight * self.input_gate().to(weight.dtype)
        else:
            x = self.multiply_inputs(input)
        y = self.add_noise(F.linear(x, weight, self.bias), self.weight, lambda v: F.linear(x * x, v))
        return self.multiply_result(self.multiply_units(y))


class GatedEmbedding(Gated, nn.Embedding):
    """`nn.Embedding` with gates on its output features or weights (an index has no input features to gate)."""

    def forward(self, input: Tensor) -> Tensor:
        y = F.embedding(
            input,
            self.gated_weight(self.weight),
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
        noisy = self.add_noise(y, self.weight, lambda v: F.embedding(input, v))
        if self.padding_idx is not None and noisy is not y:
            noisy = torch.where((input == self.padding_idx).unsqueeze(-1), y, noisy)
        return self.multiply_result(self.multiply_units(noisy))


class _GatedConv(Gated, nn.modules.conv._ConvNd):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.gated_weight(self.weight), self.bias
        quiet = not _noisy(self.weight_gate)
        fold_inputs = whole_batch(self.input_gate) and self.groups == 1 and quiet
        fold_units = whole_batch(self.unit_gate) and quiet
        ones = [1] * (weight.dim() - 2)
        if fold_inputs:
            assert self.input_gate is not None
            weight = weight * self.input_gate().view(1, -1, *ones).to(weight.dtype)
        if fold_units:
            assert self.unit_gate is not None
            z = self.unit_gate().to(weight.dtype)
            weight = weight * z.view(-1, 1, *ones)
            bias = None if bias is None else bias * z
        x = input if fold_inputs else self.multiply_inputs(input)
        y: Tensor = self._conv_forward(x, weight, bias)
        y = self.add_noise(y, self.weight, lambda v: self._conv_forward(x * x, v, None))
        return self.multiply_result(y if fold_units else self.multiply_units(y))

    def feature_axis(self, x: Tensor) -> int:
        return x.dim() - 1 - len(self.kernel_size)


class GatedConv1d(_GatedConv, nn.Conv1d):
    """`nn.Conv1d` with gates."""


class GatedConv2d(_GatedConv, nn.Conv2d):
    """`nn.Conv2d` with gates."""


class GatedConv3d(_GatedConv, nn.Conv3d):
    """`nn.Conv3d` with gates."""


class _GatedBatchNorm(Gated, nn.modules.batchnorm._BatchNorm):
    """A norm carries the unit gates of the layer in front of it: there a closed unit is exactly zero."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        weight, bias = self.scale_and_shift()
        y = F.batch_norm(
            input,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            weight,
            bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
        )
        return self.multiply_result(y if whole_batch(self.unit_gate) else self.multiply_units(y))

    def feature_axis(self, x: Tensor) -> int:
        return 1


class GatedBatchNorm1d(_GatedBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` with unit gates."""


class GatedBatchNorm2d(_GatedBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` with unit gates."""


class GatedBatchNorm3d(_GatedBatchNorm, nn.BatchNorm3d):
    """`nn.BatchNorm3d` with unit gates."""


class GatedGroupNorm(Gated, nn.GroupNorm):
    """`nn.GroupNorm` with unit gates, on its scale and shift: in front of it a gate would have no gradient."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.scale_and_shift()
        y = F.group_norm(input, self.num_groups, weight, bias, self.eps)
        return self.multiply_result(y if whole_batch(self.unit_gate) else self.multiply_units(y))

    def feature_axis(self, x: Tensor) -> int:
        return 1


class GatedLayerNorm(Gated, nn.LayerNorm):
    """`nn.LayerNorm` with unit gates, on its scale and shift."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias, whole = self.weight, self.bias, whole_batch(self.unit_gate)
        if whole:
            assert self.unit_gate is not None
            z = self.unit_gate().to(weight.dtype)
            weight, bias = weight * z, None if bias is None else bias * z
        y = F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)
        return self.multiply_result(y if whole else self.multiply_units(y))


class _GatedInstanceNorm(Gated, nn.modules.instancenorm._InstanceNorm):
    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        weight, bias = self.scale_and_shift()
        y = F.instance_norm(
            input,
            self.running_mean,
            self.running_var,
            weight,
            bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
        )
        return self.multiply_result(y if whole_batch(self.unit_gate) else self.multiply_units(y))

    def feature_axis(self, x: Tensor) -> int:
        return 1


class GatedInstanceNorm1d(_GatedInstanceNorm, nn.InstanceNorm1d):
    """`nn.InstanceNorm1d` with unit gates."""


class GatedInstanceNorm2d(_GatedInstanceNorm, nn.InstanceNorm2d):
    """`nn.InstanceNorm2d` with unit gates."""


class GatedInstanceNorm3d(_GatedInstanceNorm, nn.InstanceNorm3d):
    """`nn.InstanceNorm3d` with unit gates."""
