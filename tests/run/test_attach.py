"""The handle: attaching or failing without a trace, optimizer groups, state, and finishing more than once."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from marks import BY_HAND
from paring.analysis import CaptureError
from paring.core import gates, is_attached
from paring.gates import expected, gate_of, support
from paring.testing import Chain, chain_batch, difference, is_stock, same_state
from paring.train.ema import Ema

pytestmark = BY_HAND

METHOD = pr.L0(price=1e-3, at=("units:Conv2d", "inputs:Linear"))


def types(net: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in net.named_modules()]


def attached(method: pr.Method = METHOD, dtype: torch.dtype = torch.float32, **clock: int) -> tuple[Chain, pr.Run]:
    torch.manual_seed(0)
    net = Chain().to(dtype)
    return net, pr.attach(net, method, chain_batch(2, dtype=dtype)[0], **clock)


def train(net: nn.Module, run: pr.Run, steps: int, lr: float = 5e-3) -> torch.optim.Optimizer:
    opt = torch.optim.Adam(run.parameter_groups(lr=lr))
    for _ in range(steps):
        x, y = chain_batch(dtype=next(net.parameters()).dtype)
        opt.zero_grad()
        (F.cross_entropy(net(x), y) + run.penalty()).backward()
        run.step(opt)
    return opt


def close(net: nn.Module, module: str, kind: str, which: list[int]) -> None:
    """Close these gates and open the others of this place."""
    gate = next(gate for name, place, gate in gates(net) if (name, place) == (module, kind))
    gate.log_alpha.data.fill_(5.0)
    gate.log_alpha.data[which] = -5.0


# --- attaching ------------------------------------------------------------------------------------------------------


def test_attaching_keeps_the_object_the_weights_and_the_mode() -> None:
    for mode in (True, False):
        net = Chain().train(mode)
        before, modules = copy.deepcopy(net.state_dict()), dict(net.named_modules())
        run = pr.attach(net, METHOD, chain_batch(2)[0])
        assert run.net is net
        assert run.method is METHOD
        assert run.report is None
        assert all(module.training is mode for module in net.modules())
        assert all(net.get_submodule(name) is module for name, module in modules.items())
        assert same_state(before, {name: value for name, value in net.state_dict().items() if name in before})
        assert all(isinstance(module, nn.Module) for module in net.children()), "the attachment is no submodule"


class Fails(pr.Method):
    """Attaches gates, then fails."""

    def attach(self, net: nn.Module, probe: Any) -> None:
        METHOD.attach(net, probe)
        raise KeyError("on purpose")


@pytest.mark.parametrize(
    ("method", "example", "error"),
    [
        (pr.L0(at="units:nothing"), None, ValueError),
        (pr.L0(at=("units", "units:conv2")), None, ValueError),
        (pr.L0(at="units:fc2"), None, ValueError),
        (pr.Stack(pr.Dense(), pr.L0(at="inputs:nothing")), None, ValueError),
        (METHOD, torch.zeros(2, 5, 8, 8), CaptureError),
        (METHOD, torch.zeros(2, 7), CaptureError),
    ],
    ids=["no place", "two places", "the last layer", "a stack", "wrong channels", "wrong shape"],
)
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_a_failure_leaves_no_trace(
    method: pr.Method, example: Tensor | None, error: type[Exception], mode: bool
) -> None:
    net = Chain().train(mode)
    net.conv1.weight.requires_grad_(False)
    before, kinds = copy.deepcopy(net.state_dict()), types(net)
    with pytest.raises(error):
        pr.attach(net, method, chain_batch(2)[0] if example is None else example)
    assert same_state(before, net.state_dict())
    assert types(net) == kinds
    assert set(vars(net)) == set(vars(Chain()))
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * 9
    assert all(module.training is mode for module in net.modules())
    assert not is_attached(net)
    pr.attach(net, METHOD, chain_batch(2)[0])


def test_a_failure_halfway_takes_the_gates_out_again() -> None:
    net = Chain()
    kinds, keys = types(net), list(net.state_dict())
    with pytest.raises(KeyError, match="on purpose"):
        pr.attach(net, Fails(), chain_batch(2)[0])
    assert types(net) == kinds
    assert list(net.state_dict()) == keys
    assert not is_attached(net)
    pr.attach(net, METHOD, chain_batch(2)[0])


def test_refused() -> None:
    x = chain_batch(2)[0]
    with pytest.raises(TypeError, match=r"attach needs an nn\.Module, got int"):
        pr.attach(3, METHOD, x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"attach needs a paring method such as paring\.L0\(\.\.\.\), got 'l0'"):
        pr.attach(Chain(), "l0", x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got <class"):
        pr.attach(Chain(), pr.L0, x)  # type: ignore[arg-type]
    net, _ = attached()
    with pytest.raises(ValueError, match="this Chain already has a method attached; use Stack"):
        pr.attach(net, pr.Dense(), x)
    with pytest.raises(ValueError, match="this Sequential already has a method attached"):
        pr.attach(nn.Sequential(net), pr.Dense(), x)


def test_several_arguments() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(3, 6), nn.Linear(2, 4), nn.Linear(10, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            out: Tensor = self.out(torch.relu(torch.cat([self.a(x), self.b(y)], 1)))
            return out

    net = Two()
    run = pr.attach(net, pr.L0(at="units"), (torch.randn(2, 3), torch.randn(2, 2)))
    close(net, "a", "units", [0, 1])
    close(net, "b", "units", [3])
    x, y = torch.randn(9, 3), torch.randn(9, 2)
    small = run.finish()
    assert torch.allclose(small(x, y), net.eval()(x, y), atol=1e-6)
    assert [tuple(layer.weight.shape) for layer in (small.a, small.b, small.out)] == [(4, 3), (3, 2), (2, 7)]


# --- training -------------------------------------------------------------------------------------------------------


def test_parameter_groups() -> None:
    net, run = attached(pr.Stack(pr.L0(at="units:Conv2d", gate_lr=3.0), pr.L0(at="inputs:Linear", gate_lr=7.0)))
    groups = {group["name"]: group for group in run.parameter_groups(0.1, 0.5)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "weights": (0.1, 0.5),
        "gates": (pytest.approx(0.3), 0.0),
        "gates1": (pytest.approx(0.7), 0.0),
    }
    carried = {name: [id(p) for p in gate.parameters()] for name, _, gate in gates(net)}
    assert [id(p) for p in groups["gates"]["params"]] == carried["norm1"] + carried["conv2"]
    assert [id(p) for p in groups["gates1"]["params"]] == carried["fc1"] + carried["fc2"]
    assert [id(p) for p in groups["weights"]["params"]] == [
        id(p) for name, p in net.named_parameters() if "gate" not in name
    ]
    chosen = {group["name"]: group["lr"] for group in run.parameter_groups(0.1, gate_lr=2.0)}
    assert chosen == {"weights": 0.1, "gates": 2.0}
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        kind(run.parameter_groups(0.1, 0.5))
    _, dense = attached(pr.Dense())
    assert [group["name"] for group in dense.parameter_groups(0.1)] == ["weights"]


def test_penalty_is_a_scalar_also_when_there_is_none() -> None:
    net, run = attached(pr.Dense())
    assert run.penalty().shape == ()
    assert run.penalty().item() == 0
    (F.cross_entropy(net(chain_batch()[0]), chain_batch()[1]) + run.penalty()).backward()
    _, priced = attached()
    assert priced.penalty().item() > 0
    assert priced.penalty().requires_grad


def test_steps_advance_the_clock() -> None:
    net, run = attached(steps=100, epoch_steps=10)
    assert (run.clock.step, run.clock.steps, run.clock.epoch_steps) == (0, 100, 10)
    opt = train(net, run, 3)
    assert (run.clock.step, run.clock.steps, run.clock.epoch_steps) == (3, 100, 10)
    run.before_step(opt)
    assert run.clock.step == 3
    run.after_step(opt)
    assert run.clock.step == 4


def test_an_optimizer_made_before_attaching_is_refused() -> None:
    net = Chain()
    old = torch.optim.SGD(net.parameters(), lr=0.1)
    run = pr.attach(net, METHOD, chain_batch(2)[0])
    why = r"does not hold the parameters of 4 gates \(norm1.units, conv2.units, fc1.inputs and 1 more\)"
    for _ in range(2):
        with pytest.raises(ValueError, match=why + r".*with SGD\(run.parameter_groups\(lr=\.\.\.\)\)"):
            run.step(old)
    run.step(torch.optim.SGD(run.parameter_groups(0.1), lr=0.1))
    with pytest.raises(ValueError, match=why):
        run.step(old)


def test_cost_counts_what_is_open() -> None:
    net, run = attached(pr.L0(at="units"))
    whole = sum(p.numel() for p in Chain().parameters())
    assert run.cost().parameters == whole
    close(net, "fc1", "units", [0, 1, 2])
    close(net, "conv2", "units", [])
    close(net, "norm1", "units", [])
    assert run.cost(support).parameters == whole - 3 * (32 + 1 + 3)
    assert run.cost(expected).parameters < run.cost().parameters
    site = next(site for site in run.method.sites(net) if site.layer == "fc1")  # type: ignore[attr-defined]
    assert int(gate_of(net, site).support().sum()) == 7
    run.finish(inplace=True)
    with pytest.raises(ValueError, match="'fc1' carries no gate at 'units': were the gates already folded"):
        gate_of(net, site)


# --- state ----------------------------------------------------------------------------------------------------------


def test_state_goes_through_a_file_without_pickled_code() -> None:
    method = pr.L0(price=pr.Budget(params=0.3), at="units", hold=0.25)
    net, run = attached(method, steps=40)
    opt = train(net, run, 20)
    saved = {"net": net.state_dict(), "run": run.state_dict(), "opt": opt.state_dict()}
    assert saved["run"]["step"] == 20
    assert set(saved["run"]["state"]["multipliers"]["units"]) == {"parameters"}
    assert saved["run"]["state"]["multipliers"]["units"]["parameters"].item() > 0
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert same_state(saved, loaded)
    other, again = attached(method, steps=40)
    other.load_state_dict(loaded["net"])
    again.load_state_dict(loaded["run"])
    assert same_state(again.state_dict(), run.state_dict())
    assert again.clock == run.clock
    assert torch.equal(again.penalty(), run.penalty())
    assert difference(net, other, chain_batch()[0]) == 0


def test_state_of_held_gates() -> None:
    method = pr.L0(price=1e-3, at="units", hold=0.5)
    net, run = attached(method, steps=10)
    train(net, run, 10)
    other, again = attached(method, steps=10)
    other.load_state_dict(net.state_dict())
    again.load_state_dict(run.state_dict())
    assert all(gate.frozen for _, _, gate in gates(other))
    assert again.penalty().item() == run.penalty().item() == 0
    x = chain_batch()[0]
    assert torch.equal(net.train()(x), other.train()(x)), "nothing is sampled any more"


def test_state_is_a_snapshot() -> None:
    net, run = attached(pr.L0(price=pr.Budget(params=0.3), at="units"), steps=40)
    train(net, run, 10)
    state = run.state_dict()
    before = copy.deepcopy(state)
    train(net, run, 10)
    assert same_state(state, before)
    run.load_state_dict(state)
    train(net, run, 10)
    assert same_state(state, before)


def test_state_of_another_method_is_refused() -> None:
    _, run = attached()
    _, other = attached(pr.L0(price=2e-3, at="units"))
    with pytest.raises(ValueError, match=r"saved with L0\(.*, but L0\(.* is attached"):
        other.load_state_dict(run.state_dict())
    assert other.clock.step == 0


# --- finishing ------------------------------------------------------------------------------------------------------


def test_finish_twice_gives_the_same_network_and_training_goes_on() -> None:
    net, run = attached(dtype=torch.float64)
    train(net, run, 10)
    state = copy.deepcopy(net.state_dict())
    first, second = run.finish(), run.finish()
    assert first is not second
    assert same_state(first.state_dict(), second.state_dict())
    assert same_state(state, net.state_dict()), "the network itself stays as it was"
    assert net.training
    assert not first.training
    assert is_stock(first)
    assert not is_attached(first)
    train(net, run, 1)
    assert not same_state(first.state_dict(), run.finish().state_dict())


def test_finish_of_an_averaged_copy() -> None:
    net, run = attached(dtype=torch.float64)
    ema = Ema(net, 0.5)
    opt = torch.optim.Adam(run.parameter_groups(5e-3))
    for _ in range(8):
        x, y = chain_batch(dtype=torch.float64)
        opt.zero_grad()
        (F.cross_entropy(net(x), y) + run.penalty()).backward()
        run.step(opt)
        ema.update()
    with ema.applied():
        average = copy.deepcopy(net)
    x = chain_batch(50, dtype=torch.float64)[0]
    small = run.finish(average)
    assert difference(small, average, x) < 1e-10
    assert difference(small, net, x) > 1e-6
    assert any(True for _ in gates(average)), "the copy keeps its gates"
    assert same_state(small.state_dict(), run.finish(net=average, inplace=True).state_dict())
    assert is_stock(average)
    with pytest.raises(ValueError, match="no method is attached to this Chain"):
        run.finish(Chain())


def test_report_and_gradients_after_finish() -> None:
    net, run = attached(pr.L0(at="units"))
    train(net, run, 2)
    close(net, "fc1", "units", [1, 4])
    small = run.finish()
    assert run.report is not None
    assert "fc1" in str(run.report)
    assert all(p.grad is None for p in small.parameters())
    assert any(p.grad is not None for p in net.parameters())
    assert tuple(small.fc1.weight.shape) == (8, 32)
    assert tuple(small.fc2.weight.shape) == (3, 8)
    nn.functional.cross_entropy(small.train()(chain_batch()[0]), chain_batch()[1]).backward()


@pytest.mark.parametrize("verify", [True, False])
def test_drop_inputs_gives_a_layer_that_selects(verify: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    x = torch.randn(20, 9, dtype=torch.float64)
    run = pr.attach(net, pr.L0(at="inputs"), x[:2])
    close(net, "0", "inputs", [0, 3, 8])
    close(net, "2", "inputs", [2, 5])
    wanted = net.eval()(x)
    whole = run.finish(drop_inputs=False, verify=verify)
    dropped = run.finish(drop_inputs=True, verify=verify)
    assert same_state(run.finish().state_dict(), dropped.state_dict()), "gates at inputs ask for it"
    assert [type(layer).__name__ for layer in whole] == ["Linear", "ReLU", "Linear"]
    assert [type(layer).__name__ for layer in dropped] == ["SelectLinear", "ReLU", "Linear"]
    assert tuple(whole[0].weight.shape) == (5, 9)
    assert tuple(dropped[0].weight.shape) == (5, 6)
    assert dropped[0].reads.tolist() == [1, 2, 4, 5, 6, 7]
    for small in (whole, dropped):
        assert torch.allclose(small(x), wanted, atol=1e-12)
    assert torch.allclose(dropped(x.index_fill(1, torch.tensor([0, 3, 8]), float("nan"))), wanted, atol=1e-12)
    assert sum(p.numel() for p in dropped.parameters()) == run.cost(support).parameters


def test_single_positions_of_a_flattened_map_are_dropped() -> None:
    net, run = attached(pr.L0(at="inputs:fc1"), torch.float64)
    close(net, "fc1", "inputs", [0, 5, 6])
    x = chain_batch(20, dtype=torch.float64)[0]
    small = run.finish()
    assert type(small.fc1).__name__ == "SelectLinear"
    assert small.fc1.reads.tolist() == [i for i in range(32) if i not in (0, 5, 6)]
    assert is_stock(small)
    assert difference(small, net, x) < 1e-12
    assert type(run.finish(drop_inputs=False).fc1) is nn.Linear


def test_unit_gates_select_nothing_by_default() -> None:
    net, run = attached(pr.L0(at="units"))
    net.fc1.weight.data[:, 3] = 0
    assert type(run.finish().fc1) is nn.Linear
    assert type(run.finish(drop_inputs=True).fc1).__name__ == "SelectLinear"


def test_finish_keeps_the_type_and_frozen_parameters() -> None:
    net, run = attached(dtype=torch.float64)
    net.conv1.weight.requires_grad_(False)
    close(net, "norm1", "units", [0])
    small = run.finish()
    assert all(p.dtype == torch.float64 for p in small.parameters())
    assert {name: p.requires_grad for name, p in small.named_parameters()} == {
        name: name != "conv1.weight" for name, _ in Chain().named_parameters()
    }
