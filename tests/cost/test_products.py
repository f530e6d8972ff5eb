"""Attention and recurrent networks: hand-counted, by torch's own counter, and alike in all that counts costs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import paring as pr
from marks import BY_HAND
from paring.analysis.wiring import wiring
from paring.core import gates
from paring.cost import CostModel, Openness, measure, report
from paring.gates import support
from paring.removal import compact
from paring.testing import nets as small
from tests.removal import transformers_zoo, zoo

pytestmark = BY_HAND

Example = Tensor | tuple[Tensor, ...]


def counted(net: nn.Module, example: Example) -> tuple[int, int]:
    """MACs and adds for one example, on which measure, CostModel and the rows of the report agree."""
    table, model = report(net, example), CostModel.of(net, wiring(net, example))()
    measured = table.measured
    assert (measured.macs, measured.adds) == (int(model.macs), int(model.adds))
    assert (measured.macs, measured.adds) == tuple(sum(row[key] for row in table.rows) for key in ("macs", "adds"))
    assert measured.parameters == int(model.parameters) == sum(p.numel() for p in net.parameters())
    assert measured.uncounted == ()
    assert measured.macs is not None
    assert measured.adds is not None
    return measured.macs, measured.adds


def by_torch(net: nn.Module, example: Example) -> int:
    """MACs for one example as torch's counter sees them in two."""
    inputs = example if isinstance(example, tuple) else (example,)
    assert all(len(x) == 2 for x in inputs)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net.train()(*inputs)
    flops = counter.get_total_flops()
    assert flops % 4 == 0
    return flops // 4  # two operations per MAC, two examples


def attention(queries: int, keys: int, heads: int, per_head: int) -> int:
    """Queries times keys and weights times values, one multiplication after the other."""
    scores = values = 0
    for _ in range(heads):
        for _ in range(queries):
            for _ in range(keys):
                scores += per_head  # a sum over the dimensions of a head
                values += per_head  # this weight times each entry of the key's value
    return scores + values


class Attend(nn.Module):
    """`nn.MultiheadAttention` of x, or of x to y."""

    def __init__(self, weights: bool, **options: object) -> None:
        super().__init__()
        self.attention, self.weights = nn.MultiheadAttention(16, 4, batch_first=True, **options), weights  # type: ignore[arg-type]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        y = x if y is None else y
        out: Tensor = self.attention(x, y, y, need_weights=self.weights)[0]
        return out


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_of_torch_to_itself(weights: bool, bias: bool) -> None:
    projections = 5 * 3 * 16 * 16 + 5 * 16 * 16  # queries, keys, values at 5 positions; the output
    macs = projections + attention(5, 5, 4, 4)
    assert counted(Attend(weights, bias=bias), torch.randn(2, 5, 16)) == (macs, macs + bias * 5 * 4 * 16)
    assert macs == 5920


@pytest.mark.parametrize("weights", [False, True])
def test_attention_of_torch_to_something_else(weights: bool) -> None:
    x, y = torch.randn(2, 5, 16), torch.randn(2, 3, 6)
    projections = 5 * 16 * 16 + 3 * 6 * 16 + 3 * 6 * 16 + 5 * 16 * 16  # queries, keys, values, output
    macs = projections + attention(5, 3, 4, 4)
    assert counted(Attend(weights, kdim=6, vdim=6), (x, y)) == (macs, macs + (5 + 3 + 3 + 5) * 16)
    same = torch.randn(2, 3, 16)
    macs = 2 * 5 * 256 + 2 * 3 * 256 + attention(5, 3, 4, 4)
    assert counted(Attend(weights), (x, same)) == (macs, macs + (5 + 3 + 3 + 5) * 16)


def test_where_the_rows_of_the_report_put_it() -> None:
    rows = {row.name: row.macs for row in measure(Attend(False), torch.randn(2, 5, 16)).rows}
    assert rows == {"attention": 5 * 3 * 256 + attention(5, 5, 4, 4), "attention.out_proj": 5 * 256}


def test_long_sequences_are_mostly_products() -> None:
    net = nn.MultiheadAttention(16, 1, batch_first=True)

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = net

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(x, x, x, need_weights=False)[0]
            return y

    macs, _ = counted(One(), torch.randn(1, 1024, 16))
    assert macs == 1024 * 4 * 256 + 2 * 1024 * 1024 * 16
    assert 1 - 1024 * 4 * 256 / macs > 0.96


class GroupedQueries(nn.Module):
    """Four heads of queries, two of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(n, m) for n, m in ((6, 16), (6, 8), (6, 8), (16, 3)))

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (f(x).view(b, t, -1, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        out: Tensor = self.out(y.transpose(1, 2).reshape(b, t, 16))
        return out


def test_several_queries_for_one_key() -> None:
    macs = 5 * (6 * 16 + 2 * 6 * 8 + 16 * 3) + attention(5, 5, 4, 4)
    assert counted(GroupedQueries(), torch.randn(2, 5, 6)) == (macs, macs + 5 * (16 + 8 + 8 + 3))


def test_closed_dimensions_of_heads_take_their_share() -> None:
    """Two pairs of queries and keys, one dimension of values, of every head: by hand, by openness, and really removed."""
    torch.manual_seed(0)
    net, x = transformers_zoo.Attention(16, 4, "sdpa").double().eval(), torch.randn(2, 5, 16).double()
    pairs, values = torch.tensor([1.0, 0, 0, 1]).repeat(4), torch.tensor([1.0, 1, 0, 1]).repeat(4)
    with torch.no_grad():
        for layer, kept in ((net.q, pairs), (net.k, pairs), (net.v, values)):
            layer.weight *= kept[:, None]
            layer.bias *= kept
    macs = 5 * 16 * (8 + 8 + 12) + 5 * 12 * 16 + 4 * 5 * 5 * (2 + 3)
    opened = Openness(units={"q": pairs, "k": pairs, "v": values})
    assert int(CostModel(wiring(net, x))(opened).macs) == macs
    assert measure(compact(net, x)[0], x).macs == macs


@pytest.mark.parametrize("make", [GroupedQueries, lambda: nn.Sequential(nn.Linear(6, 16), Attend(True))])
def test_support_of_heads_costs_what_finishing_leaves(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net, x = make().double(), torch.randn(2, 5, 6).double()
    run = pr.attach(net, pr.L0(price=1e-3, at="heads"), x)
    ((_, _, gate),) = gates(net)
    heads = len(gate.log_alpha)
    for closed in range(1, heads):
        shown = copy.deepcopy(run)
        ((_, _, gate),) = gates(shown.net)
        gate.log_alpha.data.fill_(3.0)
        gate.log_alpha.data[torch.randperm(heads)[:closed]] = -5.0
        said, actual = shown.cost(support), measure(shown.finish(early=True), x)
        assert (actual.macs, actual.adds, actual.parameters) == (int(said.macs), int(said.adds), int(said.parameters))
        assert int(said.macs) < int(shown.cost().macs)


class Table(nn.Module):
    """A product with a loose parameter, one of two activations without heads, one that no input has a part in."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.second = (nn.Parameter(torch.randn(*s)) for s in ((6, 3), (6, 2), (2, 5)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (x @ self.table).softmax(1).mT @ x + (self.first @ self.second).sum()
        return y


def test_products_of_parameters_and_of_activations() -> None:
    net, x = Table(), torch.randn(2, 5, 6)
    assert counted(net, x)[0] == 5 * 6 * 3 + 3 * 5 * 6 + 6 * 2 * 5  # the last once, however many examples


class First(nn.Module):
    """The outputs of a recurrent layer, without its states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)[0]
        return y


def recurrent(
    gates: int, inputs: int, hidden: int, steps: int, layers: int = 1, ways: int = 1, shown: int = 0
) -> tuple[int, int]:
    """MACs and bias adds: of each step, way and layer, gate by gate and unit by unit."""
    macs = adds = 0
    out = shown or hidden
    for layer in range(layers):
        width = inputs if layer == 0 else ways * out
        for _ in range(ways * steps):
            for _ in range(gates * hidden):
                macs += width + out  # a row of each matrix
                adds += 2  # its two biases
            macs += shown * hidden  # the projection of the state, without a bias
    return macs, adds


@pytest.mark.parametrize(
    ("make", "gates", "options"),
    [
        (nn.LSTM, 4, {}),
        (nn.LSTM, 4, {"num_layers": 2, "bidirectional": True, "proj_size": 2}),
        (nn.LSTM, 4, {"bidirectional": True, "bias": False}),
        (nn.GRU, 3, {"num_layers": 2}),
        (nn.GRU, 3, {"bidirectional": True}),
        (nn.RNN, 1, {"num_layers": 2, "bidirectional": True}),
        (nn.RNN, 1, {"nonlinearity": "relu"}),
    ],
)
def test_recurrent_layers(make: Callable[..., nn.Module], gates: int, options: dict[str, int]) -> None:
    net = First(make(7, 3, batch_first=True, **options))
    ways, shown = 1 + options.get("bidirectional", 0), options.get("proj_size", 0)
    macs, adds = recurrent(gates, 7, 3, 5, options.get("num_layers", 1), ways, shown)
    bias = options.get("bias", True)
    assert counted(net, torch.randn(2, 5, 7)) == (macs, macs + bias * adds)


@pytest.mark.parametrize(("make", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)])
def test_recurrent_cells(make: type[nn.Module], gates: int) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = make(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            return state[0] if isinstance(state, tuple) else state  # type: ignore[return-value]

    macs, adds = recurrent(gates, 7, 3, 5)
    assert counted(Steps(), torch.randn(2, 5, 7)) == (macs, macs + adds)


def test_part_of_the_forward_without_gradients() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.a(x) @ self.a(x).mT
            return h.mean() + self.b(self.a(x))  # type: ignore[no-any-return]

    assert measure(Frozen(), torch.randn(2, 5, 6)).macs == 5 * (3 * 24 + 12) + 5 * 5 * 4


def test_bias_of_a_transposed_convolution_is_added_at_every_output() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    macs = 3 * 4 * 4 * 25 + 4 * 2 * 100  # the whole kernel at 5 x 5 inputs; 10 x 10 outputs
    assert counted(net, torch.randn(2, 3, 5, 5)) == (macs, macs + 4 * 100 + 2 * 100)


class Twice(nn.Module):
    """A network called through two names, an embedding, grouped convolutions, a bilinear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.one = nn.Embedding(7, 6), nn.Linear(6, 6)
        self.two = self.one
        self.conv, self.both = nn.Conv1d(6, 4, 3, groups=2), nn.Bilinear(4, 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.two(self.one(self.words(x)).relu())
        y: Tensor = self.both(self.conv(h.mT).mean(-1), h.mean(1))
        return y


def test_embeddings_groups_and_second_names() -> None:
    macs = 2 * 8 * 36 + 6 * 4 * 3 * 3 + (5 * 4 * 6 + 5 * 6)
    assert counted(Twice(), torch.randint(0, 7, (2, 8))) == (macs, macs + 2 * 8 * 6 + 6 * 4 + 5)


def images(size: int = 12) -> Tensor:
    return torch.randn(2, 3, size, size)


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], Example]]] = {
    **{make.__name__: (make, images) for make in zoo.SPOTS},
    "chain": (small.Chain, lambda: small.chain_batch(2)[0]),
    "module chain": (small.ModuleChain, lambda: small.chain_batch(2)[0]),
    "encoder": (lambda: nn.TransformerEncoderLayer(16, 4, 20, batch_first=True), lambda: torch.randn(2, 5, 16)),
    "gru": (lambda: First(nn.GRU(7, 3, 2, bidirectional=True, batch_first=True)), lambda: torch.randn(2, 5, 7)),
    "grouped queries": (GroupedQueries, lambda: torch.randn(2, 5, 6)),
    "gpt": (transformers_zoo.GPT, lambda: torch.randint(0, 11, (2, 6))),
    "vit": (lambda: transformers_zoo.ViT("softmax", gated=True), lambda: images(8)),
    "einsum": (lambda: transformers_zoo.Attention(style="einsum"), lambda: torch.randn(2, 5, 16)),
}


@pytest.mark.parametrize("name", ZOO)
def test_as_torch_counts(name: str) -> None:
    torch.manual_seed(0)
    make, example = ZOO[name]
    net, x = make(), example()
    assert counted(net, x)[0] == by_torch(net, x)
