"""The one table of layer kinds: what paring knows of a layer class, and nowhere else.

A `Kind` says where a class keeps its units: which dimension of the weight, which other tensors, which attributes hold
sizes. From that follow what a gate on it looks like, how it is cut and resized, what its parameters cost, and whether the
tensors of a file fit it. What a layer *computes* is not said here: that is read off the captured graph, operation by
operation.

`register` adds a class of your own:

    class ScaledLinear(nn.Linear):                      # y = s * (W x + b), one s for each unit
        ...
    class GatedScaledLinear(GatedCall, ScaledLinear):   # importable, as copies and pickles name it
        pass
    register(Kind(ScaledLinear, "linear", sizes=("out_features", "in_features"), per_unit=("bias", "scale"),
                  gated=GatedScaledLinear))

A class that is not in the table is of the kind of its nearest base class: it is captured, cut, resized and gated like that
(`gated_subclass` puts gates round the operation in its forward).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from paring.core import layers, packed
from paring.core.attention import GatedMultiheadAttention, packed_projections, projection_factors, projection_rows
from paring.core.layers import Gated, PlaceKind
from paring.core.padded_layer_norm import PaddedLayerNorm
from paring.core.recurrent import GATES, hidden_count, packed_weights, unit_factors
from paring.core.select_linear import SelectLinear


def _nothing(module: nn.Module) -> str:
    return ""


def _none(module: nn.Module) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Kind:
    """What is known of a layer class.

    Attributes:
        layer: the class.
        operation: the operation of torch that reads the weight: "linear", "addmm" (a linear layer that keeps its weight as
            (inputs, outputs)), "conv", "conv_transpose", "embedding", "batch_norm", "instance_norm", "group_norm",
            "layer_norm", "rms_norm" or "prelu"; "" for none that removal understands. It also says what the layer costs: one multiply-accumulate for
            each weight and position, but none for a look-up, a norm or an activation.
        unit_dim: dimension of the weight along which the units lie.
        column_dim: the one along which the input features lie; None where there are none.
        sizes: attributes that say the weight's first sizes, in order; empty where the layer cannot be resized.
        groups: attribute with the number of groups; "" where there are none. The weight's dimension 1 is that of one group.
        per_unit: parameters and buffers with one entry (or slice) for each unit along their first dimension, beside the
            weight. In the forward, those that `torch` itself does not know act on the units that they belong to.
        scaled: what a factor of a unit multiplies: the unit's output is times z when these are. The weight is the first.
        last: what a factor of all that the layer gives multiplies, parameters of a part with a dot; `scaled` where it is empty.
        gated: the class with gates that takes its place; None where it cannot have any.
        places: where gates may sit.
        elsewhere: why they cannot sit in other places.
        obstacle: why this very layer cannot carry gates; "" when it can.
        packed: weights of this very layer, by name, that each take a gate of their own at "weights", in place of the one
            weight of other kinds; of a part of it with a dot ("out_proj.weight"). The gated class shows them to the forward
            (`GatedPacked`).
        units: number of units, where they lie in several weights; None: the first size of the weight along `unit_dim`.
        unit_factors: what a factor of each of these (units,) multiplies: parameter -> a tensor that broadcasts with it; with
            `candidates=False` all that a unit has.
    """

    layer: type[nn.Module]
    operation: str = ""
    unit_dim: int = 0
    column_dim: int | None = 1
    sizes: tuple[str, ...] = ()
    groups: str = ""
    per_unit: tuple[str, ...] = ("bias",)
    scaled: tuple[str, ...] = ("weight", "bias")
    last: tuple[str, ...] = ()
    gated: type[Gated] | None = None
    places: tuple[PlaceKind, ...] = ("units", "inputs", "weights")
    elsewhere: str = ""
    obstacle: Callable[[nn.Module], str] = _nothing
    packed: Callable[[nn.Module], tuple[str, ...]] = _none
    units: Callable[[nn.Module], int] | None = None
    unit_factors: Callable[..., dict[str, Tensor]] | None = None

    @property
    def own(self) -> tuple[str, ...]:
        """Those of `per_unit` that no operation of torch reads as its bias or statistics."""
        return tuple(leaf for leaf in self.per_unit if leaf not in _OF_TORCH)

    def groups_in(self, module: nn.Module) -> int:
        """Number of groups, 1 where there are none."""
        return int(getattr(module, self.groups)) if self.groups else 1

    def group_size(self, module: nn.Module) -> int:
        """Entries of the weight's dimension 0 in one group, which no cut changes; 0 where there is nothing to keep.

        One group of a convolution may have any size, one of a norm stays as it is.
        """
        groups = self.groups_in(module)
        kept = bool(self.groups) and (groups > 1 or self.column_dim is None)
        return int(getattr(module, self.sizes[0])) // groups if kept else 0

    def weight_in(self, module: nn.Module) -> Tensor:
        """The weight."""
        weight = getattr(module, self.scaled[0])
        assert isinstance(weight, Tensor)
        return weight

    def shape(self, module: nn.Module, place: PlaceKind) -> tuple[int, ...]:
        """Shape of what acts in this place: (units,), (inputs,) over all groups, that of the weight, or (1,) for all of it."""
        if place == "units" and self.units is not None:
            return (self.units(module),)
        weight = self.weight_in(module)
        if place == "weights":
            return tuple(weight.shape)
        if place == "blocks":
            return (1,)
        dim = self.unit_dim if place == "units" else self.column_dim
        assert dim is not None
        return (weight.shape[dim] * (self.groups_in(module) if dim == 1 else 1),)

    def along_units(self, module: nn.Module, leaf: str, value: Tensor) -> Tensor:
        """`value` (units,) laid out against one of `scaled` or `per_unit`, so that it broadcasts with it."""
        return _along(
            getattr(module, leaf), self.unit_dim if leaf == self.scaled[0] else 0, self.groups_in(module), value
        )

    def along_inputs(self, module: nn.Module, value: Tensor) -> Tensor:
        """`value` (inputs,) laid out against the weight, so that it broadcasts with it; each group sees its own slice."""
        assert self.column_dim is not None
        return _along(self.weight_in(module), self.column_dim, self.groups_in(module), value)

    def resize(self, module: nn.Module, groups: int | None = None) -> None:
        """Set the sizes and the groups to what the tensors say; a group keeps its size where their number is not given."""
        if not self.sizes:
            return
        held = (getattr(module, leaf, None) for leaf in (self.scaled[0], *self.per_unit))
        shape = next((one.shape for one in held if isinstance(one, Tensor)), None)
        if shape is None or len(shape) < len(self.sizes):
            return
        size = self.group_size(module)
        groups = groups or (shape[0] // size if size else 1)
        if size:
            setattr(module, self.groups, groups)
        for dim, attribute in enumerate(self.sizes):
            if isinstance(getattr(module, attribute, None), tuple):  # all sizes of the tensor
                setattr(module, attribute, tuple(shape))
            else:
                setattr(module, attribute, shape[dim] * (groups if dim == 1 else 1))


_OF_TORCH = ("bias", "running_mean", "running_var")
_TABLE: dict[type[nn.Module], Kind] = {}
_ELSEWHERE = {("transformers.pytorch_utils", "Conv1D"): "paring.core.conv1d"}
"""Classes of other libraries that are known here: where they are from -> the module that registers them."""


def register(kind: Kind) -> None:
    """Add a kind to the table: from now on, networks with this class are gated, cut, counted, saved and loaded by it.

    Raises:
        TypeError: `layer` is no class of modules, or `gated` is not one of gates on that class.
        ValueError: the class is known already as something else, or another one of the same name (files know layers by it).
    """
    if not (isinstance(kind.layer, type) and issubclass(kind.layer, nn.Module)):
        raise TypeError(f"a kind is of a class of nn.Module, not of {kind.layer!r}")
    name = kind.layer.__name__
    if kind.gated is not None and not (issubclass(kind.gated, Gated) and issubclass(kind.gated, kind.layer)):
        raise TypeError(
            f"{kind.gated.__name__} is no gated {name}: derive it from both, class Gated{name}(GatedCall, {name}): pass"
        )
    other = next((known for known in _TABLE.values() if known.layer.__name__ == name), kind)
    if other != kind:
        same = other.layer is kind.layer
        raise ValueError(
            f"{name} is registered already, and not like this"
            if same
            else f"another class called {name} is registered ({other.layer.__module__}); files know layers by their name, so rename one"
        )
    _TABLE[kind.layer] = kind


def kind_of(module: nn.Module | type[nn.Module]) -> Kind | None:
    """The kind of a layer (or of a class of layers): that of its class, else of its nearest base class; None for none."""
    for base in (module if isinstance(module, type) else type(module)).__mro__:
        if (found := _exact(base)) is not None:
            return found
    return None


def gateable(module: nn.Module) -> Kind | None:
    """The kind of a layer that may carry gates: its class is known and has a gated one, or derives from such a class.

    A subclass with a forward of its own calls an operation that gates can sit round; which of its parameters are ones of
    torch, and not computed, is for the captured graph to say.
    """
    found = kind_of(module)
    if found is None or (found.gated is None and not isinstance(module, Gated)):
        return None
    return found if isinstance(module, Gated) or found.layer is type(module) or found.operation else None


def derived(module: nn.Module) -> bool:
    """Whether the layer, with gates or without, is of no class of the table but derives from one."""
    found = kind_of(module)
    return found is not None and found.layer is not stock_class(module)


def stock_class(module: nn.Module) -> type[nn.Module]:
    """The class of a layer without its gates."""
    bases: list[type[nn.Module]] = type(module).mro()
    return next(base for base in bases if not issubclass(base, Gated))


def kinds() -> tuple[Kind, ...]:
    """All that are registered."""
    return tuple(_TABLE.values())


def sized(name: str) -> bool:
    """Whether a class of this name is known that can be resized."""
    late = any(name == known for _, known in _ELSEWHERE) or any(name == one.__name__ for one in GATES)
    return late or any(kind.layer.__name__ == name and kind.sizes for kind in _TABLE.values())


def _exact(base: type) -> Kind | None:
    if base not in _TABLE and (where := _ELSEWHERE.get((base.__module__, base.__qualname__))) is not None:
        importlib.import_module(where)
    return _TABLE.get(base)


def _along(held: Tensor, dim: int, groups: int, value: Tensor) -> Tensor:
    """`value` along a dimension of `held`; along dimension 1 each group, a stretch of dimension 0, has its own values."""
    if dim == 0:
        return value.view(-1, *[1] * (held.dim() - 1))
    rows = value.view(groups, -1, *[1] * (held.dim() - 2))
    return rows if groups == 1 else rows.repeat_interleave(held.shape[0] // groups, 0)


def _further(module: nn.Module) -> str:
    return (
        "" if module.bias_k is None else "it has keys and values of its own (add_bias_kv) beside those that it projects"
    )


def _bare(module: nn.Module) -> str:
    return "" if module.affine else "affine=False, so there is no scale to fold them into"


def _fill() -> None:
    linear = ("out_features", "in_features")
    register(Kind(nn.Linear, "linear", sizes=linear, gated=layers.GatedLinear))
    register(Kind(SelectLinear, "linear", sizes=linear))
    register(Kind(nn.modules.linear.NonDynamicallyQuantizableLinear, "linear", sizes=linear))
    table = ("num_embeddings", "embedding_dim")
    register(
        Kind(
            nn.Embedding,
            "embedding",
            unit_dim=1,
            column_dim=None,
            sizes=table,
            per_unit=(),
            scaled=("weight",),
            gated=layers.GatedEmbedding,
            places=("units", "weights"),
            elsewhere="an index has no features to gate",
        )
    )
    stock = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    for conv, gated in zip(stock, (layers.GatedConv1d, layers.GatedConv2d, layers.GatedConv3d), strict=True):
        register(Kind(conv, "conv", sizes=("out_channels", "in_channels"), groups="groups", gated=gated))
    for layer in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        register(Kind(layer, "conv_transpose", 1, 0, sizes=("in_channels", "out_channels"), groups="groups"))
    running = ("bias", "running_mean", "running_var")
    as_norm: dict[str, Any] = {
        "column_dim": None,
        "places": ("units",),
        "elsewhere": "a norm has unit gates only",
        "obstacle": _bare,
    }
    norms: dict[type[nn.Module], type[Gated] | None] = {
        nn.BatchNorm1d: layers.GatedBatchNorm1d,
        nn.BatchNorm2d: layers.GatedBatchNorm2d,
        nn.BatchNorm3d: layers.GatedBatchNorm3d,
        nn.SyncBatchNorm: None,
        nn.modules.batchnorm._BatchNorm: None,
    }
    for norm, gated_norm in norms.items():
        register(Kind(norm, "batch_norm", sizes=("num_features",), per_unit=running, gated=gated_norm, **as_norm))
    centred: dict[type[nn.Module], type[Gated] | None] = {
        nn.InstanceNorm1d: layers.GatedInstanceNorm1d,
        nn.InstanceNorm2d: layers.GatedInstanceNorm2d,
        nn.InstanceNorm3d: layers.GatedInstanceNorm3d,
        nn.modules.instancenorm._InstanceNorm: None,
    }
    for norm, gated_norm in centred.items():
        register(Kind(norm, "instance_norm", sizes=("num_features",), per_unit=running, gated=gated_norm, **as_norm))
    register(
        Kind(
            nn.GroupNorm,
            "group_norm",
            sizes=("num_channels",),
            groups="num_groups",
            gated=layers.GatedGroupNorm,
            **as_norm,
        )
    )
    features: dict[str, Any] = {"column_dim": None, "sizes": ("normalized_shape",)}
    acts: dict[str, Any] = {"places": ("units",), "elsewhere": "a norm has unit gates only"}
    register(Kind(nn.LayerNorm, "layer_norm", gated=layers.GatedLayerNorm, **features, **acts))
    register(Kind(PaddedLayerNorm, **features))
    register(Kind(nn.RMSNorm, "rms_norm", per_unit=(), scaled=("weight",), **features))
    register(Kind(nn.PReLU, "prelu", column_dim=None, sizes=("num_parameters",), per_unit=(), scaled=("weight",)))
    register(
        Kind(
            nn.MultiheadAttention,
            scaled=("in_proj_weight", "in_proj_bias"),
            per_unit=("in_proj_bias",),
            last=("out_proj.weight", "out_proj.bias"),
            gated=GatedMultiheadAttention,
            places=("units",),
            elsewhere="only its projections have unit gates",
            obstacle=_further,
            packed=packed_projections,
            units=projection_rows,
            unit_factors=projection_factors,
        )
    )
    recurrent: dict[type[nn.Module], type[Gated]] = {
        nn.RNN: packed.GatedRNN,
        nn.LSTM: packed.GatedLSTM,
        nn.GRU: packed.GatedGRU,
        nn.RNNCell: packed.GatedRNNCell,
        nn.LSTMCell: packed.GatedLSTMCell,
        nn.GRUCell: packed.GatedGRUCell,
    }
    for one, gated_one in recurrent.items():
        register(
            Kind(
                one,
                column_dim=None,
                per_unit=(),
                scaled=(),
                gated=gated_one,
                places=("units",),
                elsewhere="a recurrent layer has gates on hidden units and on weights",
                packed=packed_weights,
                units=hidden_count,
                unit_factors=unit_factors,
            )
        )


_fill()
