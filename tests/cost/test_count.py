"""CostModel against plain loops, enumeration of all gate settings, sampling, hand-computed and really smaller nets."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from paring.analysis.wiring import Wiring
from paring.cost import Cost, CostModel, Openness
from reference.cost import Builder, configurations, lenet5, mlp, naive, small_nets

NETS = small_nets()


def random_openness(
    wiring: Wiring, seed: int, places: Iterable[str], hard: bool = False, skip: float = 0.0
) -> Openness:
    """Chances (or 0/1) for every place; layers that share labels share their unit chances."""
    g = torch.Generator().manual_seed(seed)
    by_label = torch.rand(wiring.units, generator=g, dtype=torch.float64)
    given: dict[str, dict[str, Tensor]] = {"units": {}, "inputs": {}, "weights": {}}
    for layer in wiring.layers:
        shapes = {"units": (layer.outputs,), "inputs": (layer.inputs,), "weights": layer.weight}
        for place in places:
            chance = torch.rand(shapes[place], generator=g, dtype=torch.float64)
            if place == "units":
                chance = by_label[layer.labels]
            if torch.rand((), generator=g) >= skip:
                given[place][layer.name] = (chance < 0.6).double() if hard else chance
    return Openness(**given)


def assert_table(cost: Cost, table: dict[str, dict[str, float]]) -> None:
    assert [row.name for row in cost.rows] == list(table)
    for row in cost.rows:
        for key, value in table[row.name].items():
            assert float(getattr(row, key)) == pytest.approx(value, abs=1e-9), (row.name, key)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("places", [(), ("units",), ("inputs",), ("weights",), ("units", "inputs", "weights")])
@pytest.mark.parametrize("drop_inputs", [True, False])
@pytest.mark.parametrize("hard", [False, True])
def test_against_loops(net: str, places: tuple[str, ...], drop_inputs: bool, hard: bool) -> None:
    wiring = NETS[net]
    model = CostModel(wiring)
    for seed in range(3):
        openness = random_openness(wiring, seed, places, hard, skip=0.3 * (net != "residual"))
        assert_table(model(openness, drop_inputs), naive(wiring, openness, drop_inputs))


def tiny_gates() -> dict[str, tuple[Wiring, Openness, tuple[str, ...]]]:
    """A dozen gates at most, so that all their settings can be enumerated."""

    def c(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    mixed = Openness(
        units={"fc1": c(0.2, 0.9)},
        inputs={"fc2": c(0.7, 0.4)},
        weights={"fc2": c(0.3, 0.6, 0.9, 0.2).view(2, 2)},
    )
    conv = Openness(units={"conv": c(0.3, 0.8, 0.5)}, inputs={"conv": c(0.2, 0.9), "fc": c(0.6, 0.4, 0.1, 0.7)})
    groups = Openness(
        units={"stem": c(0.3, 0.8, 0.5, 0.9), "depthwise": c(0.4, 0.7)}, inputs={"grouped": c(0.2, 0.6, 0.9, 0.5)}
    )
    stream = c(0.3, 0.8)
    residual = Openness(
        units={"stem": stream, "fc2": stream, "fc1": c(0.5, 0.9)}, inputs={"fc1": c(0.2, 0.6), "head": c(0.7, 0.1)}
    )
    return {
        "mlp": (NETS["mlp"], mixed, ()),
        "conv": (NETS["conv"], conv, ()),
        "groups": (NETS["groups"], groups, ()),
        "residual": (NETS["residual"], residual, ("stem", "fc2")),
    }


@pytest.mark.parametrize("net", tiny_gates())
def test_expected_cost_is_the_mean_over_every_gate_setting(net: str) -> None:
    wiring, openness, tied = tiny_gates()[net]
    mean = torch.zeros_like(CostModel(wiring)().table)
    mass = 0.0
    for p, setting in configurations(openness, tied):
        table = naive(wiring, setting)
        order = ("outputs", "inputs", "weights", "biases", "parameters", "macs", "adds")
        numbers = [[table[row][key] for row in table] for key in order]
        mean += p * torch.tensor(numbers, dtype=torch.float64)
        mass += p
    assert mass == pytest.approx(1.0)
    torch.testing.assert_close(CostModel(wiring)(openness).table, mean, rtol=1e-9, atol=1e-9)


def test_expected_cost_is_the_mean_of_sampled_supports() -> None:
    wiring = NETS["conv"]
    openness = random_openness(wiring, 3, ("units", "inputs", "weights"))
    model = CostModel(wiring)
    g = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(1500):
        sample = {
            place: {k: torch.bernoulli(v, generator=g) for k, v in getattr(openness, place).items()}
            for place in ("units", "inputs", "weights")
        }
        cost = model(Openness(**sample))
        draws.append([float(cost.parameters), float(cost.macs), float(cost.adds)])
    samples = torch.tensor(draws)
    expected = model(openness)
    want = torch.tensor([float(expected.parameters), float(expected.macs), float(expected.adds)])
    error = samples.std(0) / math.sqrt(len(draws))
    assert bool(((samples.mean(0) - want).abs() < 4 * error).all())


def test_lenet5_by_hand() -> None:
    cost = CostModel(lenet5())()
    assert {row.name: int(row.macs) for row in cost.rows} == {
        "conv1": 20 * 25 * 576,
        "conv2": 50 * 20 * 25 * 64,
        "fc1": 400_000,
        "fc2": 5_000,
    }
    assert int(cost.parameters) == 431_080
    assert int(cost.weights) == 430_500
    assert int(cost.biases) == 580
    assert int(cost.macs) == 288_000 + 1_600_000 + 400_000 + 5_000
    bias_adds = 20 * 576 + 50 * 64 + 500 + 10
    assert int(cost.adds) == int(cost.macs) + bias_adds
    assert int(cost.flops) == 2 * int(cost.macs) + bias_adds
    assert int(cost.row("conv1").flops) == 2 * 288_000 + 20 * 576
    assert cost.table.dtype == torch.float64


def test_unit_support_costs_what_the_really_smaller_lenet_costs() -> None:
    """The paper's 9-18-65-25: conv maps, flattened columns, hidden units (65 of fc1's columns gated at its input)."""
    g = torch.Generator().manual_seed(1)

    def support(size: int, kept: int) -> Tensor:
        return (torch.randperm(size, generator=g) < kept).double()

    units = {"conv1": support(20, 9), "conv2": support(50, 18), "fc1": support(500, 65)}
    small, full = CostModel(lenet5(9, 18, 18 * 16, 65)), CostModel(lenet5())
    torch.testing.assert_close(full(Openness(units=units)).table, small().table, rtol=0, atol=0)

    kept_maps = units["conv2"].nonzero().flatten().tolist()
    inputs = torch.zeros(800, dtype=torch.float64)
    for number, unit in enumerate(kept_maps):  # some columns of every kept map, 65 in all
        inputs[unit * 16 : unit * 16 + (4 if number < 11 else 3)] = 1
    gates = Openness(units={"conv1": support(20, 9)}, inputs={"fc1": inputs, "fc2": support(500, 25)})
    small = CostModel(lenet5(9, 18, 65, 25))
    torch.testing.assert_close(full(gates).table, small().table, rtol=0, atol=0)


def test_a_unit_stays_while_one_of_its_columns_is_open() -> None:
    columns = torch.zeros(800)
    columns[16 * 7 + 3] = 1
    cost = CostModel(lenet5())(Openness(inputs={"fc1": columns}))
    assert int(cost.row("conv2").outputs) == 1
    assert int(cost.row("conv2").parameters) == 20 * 25 + 1
    assert int(cost.row("fc1").weights) == 500


def test_closed_network_inputs_are_saved_only_when_dropped() -> None:
    gates = Openness(inputs={"fc1": torch.tensor([1.0, 0.0, 0.0])})
    model = CostModel(mlp(3, 4, 2))
    assert int(model(gates).row("fc1").weights) == 4
    assert int(model(gates, drop_inputs=False).row("fc1").weights) == 12


def test_what_a_barrier_reads_stays_whatever_the_input_gates_say() -> None:
    b = Builder()
    first = b.layer("a", (2, 3), [-1] * 3, gateable=False)
    b.layer("b", (1, 2), first, gateable=False)
    cost = CostModel(b.wiring())(Openness(inputs={"b": torch.zeros(2)}))
    assert int(cost.row("a").parameters) == 8
    assert int(cost.row("b").parameters) == 1  # its bias


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("edge", [False, True])
def test_gradients(net: str, edge: bool) -> None:
    """Also where gates are exactly 0 or 1, where log1p would fail."""
    wiring = NETS[net]
    model = CostModel(wiring)
    shared = random_openness(wiring, 5, ("units", "inputs", "weights"))
    names, leaves = [], []
    for place in ("units", "inputs", "weights"):
        for name, chance in getattr(shared, place).items():
            if net == "residual" and (place, name) == ("units", "fc2"):
                continue
            if edge and place == "inputs" and chance.numel():
                chance = chance.round()
            names.append((place, name))
            leaves.append(chance.clone().requires_grad_())

    def totals(*chances: Tensor) -> Tensor:
        given: dict[str, dict[str, Tensor]] = {"units": {}, "inputs": {}, "weights": {}}
        for (place, name), chance in zip(names, chances, strict=True):
            given[place][name] = chance
        if net == "residual":
            given["units"]["fc2"] = given["units"]["stem"]
        cost = model(Openness(**given))
        return torch.stack([cost.parameters, cost.macs, cost.adds])

    assert torch.autograd.gradcheck(totals, leaves, fast_mode=False)


def test_gradient_of_a_column_that_keeps_a_unit_alive() -> None:
    """Two closed columns read one unit: opening either brings its whole row back; d read / d c = 1 - other."""
    b = Builder()
    unit = b.layer("a", (1, 5), [-1] * 5)
    b.layer("b", (3, 2), [unit[0], unit[0]], gateable=False)
    gate = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    cost = CostModel(b.wiring())(Openness(inputs={"b": gate}))
    (grad,) = torch.autograd.grad(cost.parameters, gate)
    assert grad.tolist() == [3 + 5 + 1, 3 + 5 + 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    chance = torch.full((500,), 0.5, dtype=dtype, requires_grad=True)
    gates = Openness(units={"fc1": chance})
    cost = CostModel(lenet5())(gates)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert cost.macs.dtype == wide
    cost.macs.backward()
    assert chance.grad is not None
    assert chance.grad.dtype == dtype
    assert chance.grad.tolist() == [pytest.approx(810.0, rel=1e-2)] * 500
    with torch.no_grad():
        assert CostModel(lenet5())(gates).macs.dtype == torch.float64
    assert CostModel(lenet5())(Openness(units={"fc1": chance.detach()})).macs.dtype == torch.float64


def test_a_mask_may_be_boolean() -> None:
    mask = torch.arange(500) < 65
    assert int(CostModel(lenet5())(Openness(units={"fc1": mask})).row("fc2").weights) == 650


class Free(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)
        self.ln, self.scale = nn.LayerNorm(4, bias=False), nn.Parameter(torch.ones(4))


def test_dense_total_is_the_number_of_parameters() -> None:
    net = Free()
    model = CostModel.of(net, mlp(3, 4, 2))
    assert model.extra == 8
    assert int(model().parameters) == sum(p.numel() for p in net.parameters())
    closed = model(Openness(units={"fc1": torch.zeros(4)}))
    assert int(closed.parameters) == 2 + 8


def test_tied_weights_count_once_when_dense() -> None:
    net = nn.ModuleDict({"fc1": nn.Linear(3, 3), "fc2": nn.Linear(3, 3)})
    net["fc2"].weight = net["fc1"].weight
    assert int(CostModel.of(net, mlp(3, 3, 3))().parameters) == 9 + 3 + 3


def test_a_wiring_without_layers_costs_its_extra() -> None:
    cost = CostModel(Wiring((), (), 0), extra=7)()
    assert (int(cost.parameters), int(cost.macs), cost.rows) == (7, 0, ())


def test_labels_need_not_start_at_zero() -> None:
    b = Builder()
    b.units = 100
    first = b.layer("a", (2, 3), [-1] * 3)
    b.layer("b", (1, 3), [*first, 7], gateable=False)  # 7: a unit of something that is no layer
    cost = CostModel(b.wiring())(Openness(units={"a": torch.tensor([0.0, 1.0])}))
    assert [int(row.weights) for row in cost.rows] == [3, 2]


def test_errors_say_what_is_there() -> None:
    model = CostModel(mlp(3, 4, 2))
    with pytest.raises(ValueError, match=r"units names 'fc9'.*\(fc1, fc2\)"):
        model(Openness(units={"fc9": torch.ones(4)}))
    with pytest.raises(ValueError, match=r"inputs\['fc1'\] has shape \(4,\) but the layer needs \(3,\)"):
        model(Openness(inputs={"fc1": torch.ones(4)}))
    with pytest.raises(ValueError, match=r"weights\['fc2'\].*\(2, 4\)"):
        model(Openness(weights={"fc2": torch.ones(4, 2)}))
    with pytest.raises(KeyError, match="it has fc1, fc2"):
        model().row("conv")
