"""What the interpretation knows about one activation, one layer call and one graph node."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from paring.analysis.repeats import filled, unlabelled

COMPUTED = "its weight is computed in the forward (paring.removal.plain_weights makes a parameter of it)"


@dataclass
class State:
    """One activation: labels (int64, -1 none) and value (float64, NaN dynamic), both of its shape.

    What repeats itself along a dimension may be stored once there (stride 0, see `repeats`).

    sums: its entries sum to one along this dimension (counted from the end), whatever the input.
    """

    labels: Tensor
    value: Tensor
    sums: int | None = None


@dataclass(frozen=True)
class Ref:
    """A parameter or buffer of the network, by name, not yet used as an operand.

    owner: path of the layer with one unit for each of its entries (`Kind.own`); None for all others. start: the row that it
    begins at, where it is a part of one.
    """

    name: str
    tensor: Tensor
    owner: str | None = None
    start: int = 0


@dataclass(frozen=True)
class Weight:
    """A parameter in front of a product, its dimensions moved, or some of its slices along the first one, as a router chooses experts.

    ways: for each dimension of the result that of the parameter, -1 for one that it does not have. chosen: slices are.
    """

    held: Ref
    ways: tuple[int, ...]
    chosen: bool


@dataclass
class Site:
    """One call of a layer.

    units (outputs,): ids. columns (inputs,): the unit that each input column reads, -1 none. constants (inputs,): the
    constant that the column always reads, NaN none. value (outputs,): the same for the units, before any norm.
    padded: zeros come in at the border, so a constant input is not constant at all positions. plain: weight and bias
    are the module's own parameters. shared: called again, tied, or used elsewhere too. foreign: why the module's forward
    does not govern all uses of its parameters ("" when it does). positions: where the weights are applied, for one
    example; written: where results are, if not there (transposed convolutions). behind: the LayerNorm that it reads, where
    nothing is computed between. tied: a linear layer with the weight of an embedding, all uses of which are known.
    """

    name: str
    kind: str
    module: nn.Module
    node: fx.Node
    units: Tensor
    columns: Tensor
    constants: Tensor
    value: Tensor
    padded: bool
    positions: int
    plain: bool
    shared: bool = False
    foreign: str = ""
    written: int = 0
    behind: FeatureNorm | None = None
    tied: bool = False

    @property
    def lookup(self) -> bool:
        """Whether it reads rows of a table, and no input columns."""
        return self.kind == "embedding"


@dataclass
class NormSite:
    """One call of a norm, or of another module with one parameter per channel; labels (C,)."""

    name: str
    module: nn.Module
    node: fx.Node
    labels: Tensor


@dataclass
class FeatureNorm:
    """One call of a norm that mixes the features of each position: LayerNorm, or RMSNorm as a module or in plain operations.

    name: path of the module. labels (d,): the units that it reads. constants (d,): what each of them always is, NaN if it is
    not constant. reason: why the units stay where they have to. centred: it subtracts the mean. weight: name of the scale;
    gamma (d,): what it multiplies by, the scale itself but for a constant that the forward adds. beta (d,): the shift, of a
    LayerNorm. number: path of the attribute that holds eps. loose: its operations are written out in a forward of the
    user's own, and its scale is cut as any tensor outside of layers. response: it is a global response norm (see
    `response_norms`); number is "" where no attribute holds eps.
    """

    name: str
    module: nn.Module
    node: fx.Node
    labels: Tensor
    constants: Tensor
    reason: str
    centred: bool
    weight: str
    gamma: Tensor
    beta: Tensor
    eps: float
    number: str
    loose: bool = False
    response: bool = False


def known(tensor: Tensor) -> State:
    """A tensor that is the same for every input of the network; complex numbers are not known, but for real ones."""
    held = tensor.detach().to("cpu")
    real = held.real.masked_fill(held.imag != 0, torch.nan) if held.is_complex() else held
    return State(unlabelled(held.shape), real.to(torch.float64, copy=True))


def blank(shape: tuple[int, ...]) -> State:
    """No labels, nothing known."""
    return State(unlabelled(shape), filled(shape, torch.nan))


def unknown(node: fx.Node) -> object:
    """The node's result, tensors with no labels and nothing known."""
    return pytree.tree_map(lambda v: blank(shape_of(v)) if isinstance(v, Tensor) else number(v), node.meta.get("val"))


def number(value: object) -> object:
    """A symbolic size as the number it had in the traced example; anything else as it is."""
    return value.node.hint if isinstance(value, torch.SymInt) else value


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """The shape that a traced tensor had in the example."""
    return tuple(n.node.hint if isinstance(n, torch.SymInt) else int(n) for n in tensor.shape)


def packet(target: object) -> str:
    """The name of an operation without overload: 'relu_', 'conv2d', 'getitem'."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket.__name__)
    return str(getattr(target, "__name__", target))


def module_path(node: fx.Node) -> str:
    """Path of the module that a node was traced in; '' for the network itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def module_paths(node: fx.Node) -> set[str]:
    """Paths of all modules that a node was traced in, but the network itself."""
    return {str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()} - {""}


def place(node: fx.Node) -> str:
    """The module that a node was traced in, for the user's eyes."""
    path = module_path(node)
    return f"'{path}'" if path else "the network's own forward"


def ties_of(net: nn.Module) -> dict[str, str]:
    """Parameter name -> another name of the same storage, for those that have one."""
    names: dict[int, list[str]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if parameter.numel():
            names.setdefault(parameter.untyped_storage().data_ptr(), []).append(name)
    return {name: group[1 if name == group[0] else 0] for group in names.values() if len(group) > 1 for name in group}


@dataclass
class Liveness:
    """Which units stay. Per group id (one more at the end for -1, always true): needed = has to be computed, kept = stays.

    last: the last units of their layers. rectangular: units that stay because slices of a tensor have to be of one size.
    grouped: units that stay because a layer reads them in groups (see `input_groups`).
    """

    needed: Tensor
    kept: Tensor
    last: set[int] = field(default_factory=set)
    rectangular: set[int] = field(default_factory=set)
    grouped: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Alias:
    """The parameter behind a stand-in's weight or bias; swapped: stored (inputs, outputs).

    start, rows: where it begins in a parameter of so many rows; rows = 0 when it is all of it. stack: so many of them lie along
    the parameter's first dimension; 0 where it is one.
    """

    name: str
    swapped: bool
    start: int = 0
    rows: int = 0
    stack: int = 0

    def dim(self, dim: int) -> int:
        """The parameter's dimension that this one of the stand-in's is."""
        return (1 - dim if self.swapped else dim) + (self.stack > 0)


@dataclass(frozen=True)
class Loose:
    """A parameter or buffer that shrinks with units.

    name: in the network. dim: along which. box (n, m): the ids that the slices along it meet; one stays while any of its ids
    does. node: where it meets them. each: parameters in a slice, 0 in one of a buffer. views: results on the way there that
    write down how many slices there are.
    """

    name: str
    dim: int
    box: Tensor
    node: fx.Node
    each: int
    views: tuple[fx.Node, ...] = ()
