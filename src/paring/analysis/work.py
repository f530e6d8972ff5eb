"""What operations of a captured graph multiply and add beside the layers: products of activations, recurrent networks.

One MAC is one multiplication whose result is added to a sum. An operation is counted from the shapes of its arguments:

    matmul, bmm, einsum, ...  one MAC for every combination of the letters of both operands: (n, k) times (k, m) is n·k·m
    attention                 queries times keys, and weights times values: two such products
    LSTM, GRU, RNN, cells     one MAC per entry of each weight matrix (projections too), step and direction
    linear, convolution       one MAC per weight and output position, where no layer of the wiring stands for it

Adds are the MACs and one more per bias and position. Free, as everywhere in `paring`: what acts entry by entry
(activations, products with a gate, softmax, residual adds, masks), norms, pooling, interpolation, lookups. What
multiplies in ways that are not known here (decompositions, Fourier transforms, operators of other packages) is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from paring.analysis.einsum_letters import contractions
from paring.analysis.state import module_path, packet, shape_of

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Product:
    """Arithmetic of one operation that no layer of the wiring stands for.

    name: unique. module: path of the module that it was traced in ("" the network itself). kind: the operation. macs,
    adds: for one example and one cell. left, right (cells,): ids of the units that a cell takes, -1 none; a cell is
    there while both are, and a product in which no unit has a share is one cell of -1. meets: units meet in pairs there
    (queries and keys), so that the product reads them; otherwise they pass through to whoever reads the result.
    """

    name: str
    module: str
    kind: str
    macs: int
    adds: int
    left: Tensor
    right: Tensor
    meets: bool = False


def whole_product(node: fx.Node, name: str, macs: int, adds: int) -> Product:
    """A product of one cell: nothing is known of units in it."""
    none = torch.tensor([-1])
    return Product(name, module_path(node), packet(node.target), macs, adds, none, none)


def is_size(node: fx.Node) -> bool:
    """Whether this is a number that depends on the sizes of inputs."""
    return isinstance(node.meta.get("val"), torch.SymInt)


def moving(nodes: list[fx.Node], constant: set[str]) -> set[fx.Node]:
    """What depends on the inputs of the network, not on their sizes alone; constant: names of placeholders that do not."""
    found: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder":
            if node.name not in constant:
                found.add(node)
        elif any(used in found for used in node.all_input_nodes) and not is_size(node):
            found.add(node)
    return found


def work(node: fx.Node) -> tuple[int, int] | None:
    """MACs and adds of a call for all of the traced batch; None where it does no arithmetic that counts.

    Raises:
        NotImplementedError: it multiplies in a way that is not known here.
    """
    target = node.target
    if isinstance(target, torch._ops.HigherOrderOperator):
        return _nested(node)
    if not isinstance(target, torch._ops.OpOverload):
        return None
    name = packet(target).rstrip("_")
    if target.namespace == "aten" and name in _RULES:
        return _RULES[name](node)
    ours = target.namespace in ("aten", "prims") and name not in _OPAQUE
    free = name in _FREE or (ours and not name.startswith(("linalg_", "fft_", "_linalg_", "_fft_")))
    if not free and _has_matrix(node):
        raise NotImplementedError(name)
    return None


_OPAQUE = frozenset({*("cdist", "_cdist_forward", "pdist", "stft", "istft", "chain_matmul", "svd", "qr", "lu_solve")})
_FREE = frozenset({*("linalg_vector_norm", "linalg_norm", "linalg_matrix_norm", "linalg_cross", "linalg_diagonal")})


def _has_matrix(node: fx.Node) -> bool:
    return any(len(shape) > 1 for shape in _shapes(node.args))


def _nested(node: fx.Node) -> tuple[int, int] | None:
    """A part of the forward under `torch.no_grad` or autocast is a graph of its own."""
    graphs = [_attribute(arg) for arg in node.all_input_nodes if arg.op == "get_attr"]
    bodies = [graph for graph in graphs if isinstance(graph, fx.GraphModule)]
    if not packet(node.target).startswith("wrap") or len(bodies) != 1:
        raise NotImplementedError(packet(node.target))
    parts = [work(inner) for inner in bodies[0].graph.nodes if inner.op == "call_function"]
    return _sum(part for part in parts if part is not None)


def _attribute(node: fx.Node) -> object:
    owner = node.graph.owning_module
    return None if owner is None else owner.get_submodule(str(node.target))


def _sum(parts: Iterator[tuple[int, int]]) -> tuple[int, int] | None:
    pairs = list(parts)
    return (sum(p[0] for p in pairs), sum(p[1] for p in pairs)) if pairs else None


def _shapes(tree: object) -> list[Shape]:
    """Shapes of all tensors among these arguments, in order."""
    nodes = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, fx.Node)]
    values = [leaf for node in nodes for leaf in pytree.tree_leaves(node.meta.get("val"))]
    return [shape_of(value) for value in values if isinstance(value, Tensor)]


def _out(node: fx.Node) -> Shape:
    return _shapes([node])[0]


def _given(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name."""
    assert isinstance(node.target, torch._ops.OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _plain(macs: int) -> tuple[int, int]:
    return macs, macs


def _matmul(node: fx.Node) -> tuple[int, int]:
    """Also mm, bmm, mv, dot: as many sums as there are results, as long as the last dimension of the first operand."""
    return _plain(prod(_out(node)) * _shapes(node.args[0])[0][-1])


def _added(node: fx.Node) -> tuple[int, int]:
    """addmm, baddbmm, addmv: a bias (one dimension) or a mask is added to the product."""
    macs = prod(_out(node)) * _shapes(node.args[1])[0][-1]
    return macs, macs + prod(_out(node)) * (len(_shapes(node.args[0])[0]) == 1)


def _addbmm(node: fx.Node) -> tuple[int, int]:
    first, second = _shapes(node.args[1:3])
    return _plain(prod(first) * second[-1])


def _linear(node: fx.Node) -> tuple[int, int]:
    macs = prod(_out(node)) * _shapes(node.args[0])[0][-1]
    return macs, macs + prod(_out(node)) * (_given(node).get("bias") is not None)


def _conv(node: fx.Node) -> tuple[int, int]:
    """Every result is a sum over a window; transposed, every entry of the input meets the whole kernel."""
    given = _given(node)
    swapped = given.get("transposed") or packet(node.target).startswith("conv_transpose")
    macs = prod(_shapes(node.args[0])[0] if swapped else _out(node)) * prod(_shapes(node.args[1])[0][1:])
    return macs, macs + prod(_out(node)) * (given.get("bias") is not None)


def _bilinear(node: fx.Node) -> tuple[int, int]:
    """First the weights times one input, then the result times the other."""
    outputs, first, second = _shapes(node.args[2])[0]
    rows = prod(_out(node)) // outputs
    macs = rows * outputs * (first * second + second)
    return macs, macs + rows * outputs * (_given(node).get("bias") is not None)


def _tensordot(node: fx.Node) -> tuple[int, int]:
    shape = _shapes(node.args[0])[0]
    return _plain(prod(_out(node)) * prod(shape[d] for d in _given(node)["dims_self"]))


def _einsum(node: fx.Node) -> tuple[int, int] | None:
    given = _given(node)
    macs = contractions(given["equation"], _shapes(given["tensors"]), given.get("path"))
    return _plain(macs) if macs else None


def _attention(node: fx.Node) -> tuple[int, int]:
    """Scores: every query with every key; then every weight with every entry of its value."""
    given = _given(node)
    query, key, value = _shapes([given["query"], given["key"], given["value"]])
    return _plain(prod(_out(node)[:-1]) * key[-2] * (query[-1] + value[-1]))


def _recurrent(node: fx.Node) -> tuple[int, int]:
    """Each matrix once for every step of every example, each bias too; whatever the layers and directions."""
    rows = prod(_shapes(node.args[0])[0][:-1])
    shapes = _shapes(_given(node)["params"] if "params" in _given(node) else node.args[2:])
    macs = rows * sum(prod(shape) for shape in shapes if len(shape) == 2)
    return macs, macs + rows * sum(prod(shape) for shape in shapes if len(shape) == 1)


_RULES: dict[str, Callable[[fx.Node], tuple[int, int] | None]] = {
    **dict.fromkeys(("matmul", "linalg_matmul", "mm", "bmm", "mv", "dot", "vdot", "inner"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _added),
    "addbmm": _addbmm,
    "linear": _linear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "_convolution"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv),
    "bilinear": _bilinear,
    "tensordot": _tensordot,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _recurrent),
}
