"""FTPROP-MB layer by layer: one algorithm with the gradient rules by default, and what it does beyond them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paring as pr
from paring.hard import (
    STE,
    GradientRule,
    Hinge,
    LogLoss,
    PerUnitLoss,
    SaturatedSTE,
    SaturatingHinge,
    Sign,
    SoftHinge,
    Staircase,
    UnitLoss,
)
from paring.hard.target_propagation import TargetPropagation

Maker = Callable[[GradientRule], nn.Module]


def _mlp(rule: GradientRule) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 9), Sign(rule), nn.Linear(9, 8, bias=False), nn.BatchNorm1d(8), Staircase(3, rule), nn.Linear(8, 4)
    )


def _conv(rule: GradientRule) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.MaxPool2d(2), Sign(rule),
        nn.Conv2d(4, 5, 3, bias=False), nn.AvgPool2d(2), nn.BatchNorm2d(5), Staircase(5, rule, each=True),
        nn.Flatten(), nn.Linear(5, 6), Sign(rule), nn.Linear(6, 4),
    )  # fmt: skip


class _Residual(nn.Module):
    """A skip past the units, a unit called twice, and two readers of one unit."""

    def __init__(self, rule: GradientRule) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 7)
        self.inner = nn.Linear(7, 7)
        self.act = Sign(rule)
        self.other = Staircase(2, rule)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.stem(x)
        h = self.act(z)
        inner = self.inner(h) + z
        return self.head(self.act(inner) + h + 0.3 * inner + self.other(F.relu(self.inner(inner))))


def _batches(shape: tuple[int, ...], count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(12, *shape, dtype=torch.float64), torch.randint(0, 4, (12,))) for _ in range(count)]


def _gap(one: nn.Module, two: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def _optimizer(kind: str, net: nn.Module) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    # Adam divides gradients by their size: a larger eps than usual keeps it from making rounding of zeros visible
    return torch.optim.Adam(net.parameters(), lr=0.01, eps=1e-4)


RULES: tuple[UnitLoss, ...] = (SoftHinge(), SaturatingHinge(), Hinge(), LogLoss(), SoftHinge(weighted=False))


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize(("make", "shape"), [(_mlp, (6,)), (_conv, (1, 8, 8)), (_Residual, (6,))])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_it_is_training_by_the_rule(rule: UnitLoss, make: Maker, shape: tuple[int, ...], kind: str) -> None:
    layered = make(rule).double()
    plain = copy.deepcopy(layered)
    trainer = TargetPropagation(layered)
    mine, theirs = _optimizer(kind, layered), _optimizer(kind, plain)
    start = copy.deepcopy(plain)
    for x, y in _batches(shape, 15):
        told = trainer.step(x, y, mine)
        theirs.zero_grad()
        loss = F.cross_entropy(plain(x), y)
        loss.backward()
        theirs.step()
        assert torch.allclose(told.loss, loss, rtol=0, atol=1e-12)
    assert _gap(layered, plain) < 1e-12
    assert _gap(plain, start) > 0.05


def test_a_saturating_hinge_given_to_the_trainer_is_the_saturated_straight_through_estimator() -> None:
    layered = _conv(STE()).double()
    plain = copy.deepcopy(layered)
    for module in plain.modules():
        if isinstance(module, Sign | Staircase):
            module.rule = SaturatedSTE()
    trainer = TargetPropagation(layered, loss=SaturatingHinge())
    mine, theirs = _optimizer("sgd", layered), _optimizer("sgd", plain)
    for x, y in _batches((1, 8, 8), 10):
        trainer.step(x, y, mine)
        theirs.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        theirs.step()
    assert _gap(layered, plain) < 1e-12


def _by_hand(net: nn.Sequential, x: Tensor, y: Tensor, steps: int, lr: float, downwards: bool) -> None:
    """Linear, Sign, Linear, Sign, Linear with weighted soft hinges and plain gradient steps, without autograd's help."""
    layers = [net[0], net[2], net[4]]
    inputs = [x]
    for layer in layers[:-1]:
        inputs.append(torch.where(layer(inputs[-1]) > 0, 1.0, -1.0).double())

    def descend(index: int, t: Tensor | None, size: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        h, layer = inputs[index], layers[index]
        z = h @ layer.weight.T + layer.bias
        top = (torch.softmax(z, 1) - F.one_hot(y, z.shape[1])) / len(y)
        slope = top if t is None or size is None else -t * size * (1 - torch.tanh(t * z) ** 2)
        return slope.T @ h, slope.sum(0), slope @ layer.weight

    with torch.no_grad():
        t: Tensor | None = None
        size: Tensor | None = None
        plan = []
        for index in (2, 1, 0):
            down = descend(index, t, size)[2]
            if downwards:
                for _ in range(steps):
                    weight, bias, _ = descend(index, t, size)
                    layers[index].weight -= lr * weight
                    layers[index].bias -= lr * bias
                down = descend(index, t, size)[2]
            plan.append((index, t, size))
            t, size = torch.sign(-down), down.abs()
        if not downwards:
            for index, t, size in plan:
                for _ in range(steps):
                    weight, bias, _ = descend(index, t, size)
                    layers[index].weight -= lr * weight
                    layers[index].bias -= lr * bias


@pytest.mark.parametrize("order", ["together", "downwards"])
@pytest.mark.parametrize("steps", [1, 3])
def test_inner_steps_and_order_against_a_naive_twin(order: Any, steps: int) -> None:
    net = nn.Sequential(nn.Linear(6, 9), Sign(), nn.Linear(9, 8), Sign(), nn.Linear(8, 4)).double()
    twin = copy.deepcopy(net)
    trainer = TargetPropagation(net, inner_steps=steps, order=order)
    opt = torch.optim.SGD(net.parameters(), lr=0.3)
    for x, y in _batches((6,), 8):
        trainer.step(x, y, opt)
        _by_hand(twin, x, y, steps, 0.3, order == "downwards")
    assert _gap(net, twin) < 1e-12


def test_where_it_differs_from_the_rule() -> None:
    """Several steps, targets taken downwards, and another loss leave the path of the gradient rule."""
    start = nn.Sequential(nn.Linear(6, 9), Sign(), nn.Linear(9, 8), Sign(), nn.Linear(8, 4)).double()
    x, y = _batches((6,), 1)[0]

    def after(**options: Any) -> nn.Module:
        net = copy.deepcopy(start)
        TargetPropagation(net, **options).step(x, y, torch.optim.SGD(net.parameters(), lr=0.3))
        return net

    plain = after()
    for options in ({"inner_steps": 2}, {"order": "downwards"}, {"loss": Hinge()}, {"loss": SoftHinge(weighted=False)}):
        other = after(**options)
        assert _gap(plain, other) > 1e-3, options
    last = ("4.weight", "4.bias")
    downwards = after(order="downwards").state_dict()
    assert all(torch.equal(plain.state_dict()[name], downwards[name]) for name in last)


def test_more_inner_steps_lower_the_layers_losses() -> None:
    torch.manual_seed(3)
    net = _mlp(SoftHinge()).double()
    x, y = _batches((6,), 1)[0]
    trainer = TargetPropagation(copy.deepcopy(net))
    made = trainer._pass(x, y)
    before = [float(made.asks[i](cut.z.detach())) for i, cut in enumerate(made.cuts)]
    for inner in (1, 10):
        moved = TargetPropagation(copy.deepcopy(net), inner_steps=inner)
        moved.step(x, y, torch.optim.SGD(moved.net.parameters(), lr=0.5))
        with torch.no_grad():
            _, inputs = moved._again(x, [cut.h.detach() for cut in made.cuts])
        after = [float(made.asks[i](z)) for i, z in enumerate(inputs)]
        assert all(now < old for now, old in zip(after, before, strict=True))
        before = after


def test_norms_see_a_batch_once() -> None:
    nets = [_mlp(SoftHinge()).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x, y = _batches((6,), 1)[0]
    for net, inner in zip(nets, (1, 5), strict=True):
        TargetPropagation(net, inner_steps=inner).step(x, y, torch.optim.SGD(net.parameters(), lr=0.0))
    assert _gap(*nets) == 0
    assert int(nets[0].state_dict()["3.num_batches_tracked"]) == 1


class _Rounding(nn.Module):
    """Rounds; detached, as something outside of autograd would be."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy().round())


class _Backless(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()


class _BacklessModule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Backless.apply(x)
        return out


@pytest.mark.parametrize("between", [_Rounding, _BacklessModule])
def test_modules_without_gradient_need_a_mapping(between: type[nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(6, 9), Sign(), nn.Linear(9, 9), between(), nn.Linear(9, 4)).double()
    x, y = _batches((6,), 1)[0]
    with pytest.raises(ValueError, match=r"has no gradient.*maps="):
        TargetPropagation(net).backward(x, y)
    net.zero_grad()
    assert not any(module._forward_hooks for module in net.modules())
    TargetPropagation(net, maps={"3": lambda z, h, gradient: gradient}).backward(x, y)
    smooth = copy.deepcopy(net)
    grads = [p.grad for p in net.parameters()]
    smooth.zero_grad()
    values = smooth[2](smooth[1](smooth[0](x)))
    F.cross_entropy(smooth[4](values + (values.round() - values).detach()), y).backward()
    for mine, p in zip(grads, smooth.parameters(), strict=True):
        assert mine is not None
        assert p.grad is not None
        assert torch.allclose(mine, p.grad, rtol=0, atol=1e-12)


def test_a_mapping_of_another_shape_is_refused() -> None:
    net = nn.Sequential(nn.Linear(6, 9), Sign(), nn.Linear(9, 9), _Rounding(), nn.Linear(9, 4)).double()
    trainer = TargetPropagation(net, maps={"3": lambda z, h, gradient: gradient[:, :2]})
    with pytest.raises(ValueError, match=r"'3' gives a gradient of shape \(12, 2\) instead of \(12, 9\)"):
        trainer.backward(*_batches((6,), 1)[0])


def test_a_units_output_that_nobody_reads_is_told() -> None:
    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.act, self.b = nn.Linear(6, 4), Sign(), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.act(self.a(x))
            out: Tensor = self.b(x)
            return out

    with pytest.raises(ValueError, match="between the output of 'act' and the training loss"):
        TargetPropagation(Unread().double()).backward(*_batches((6,), 1)[0])


@pytest.mark.parametrize("order", ["together", "downwards"])
@pytest.mark.parametrize("steps", [1, 3])
def test_units_that_do_not_reach_the_loss_are_left_out(order: Any, steps: int) -> None:
    """A second head that nothing is trained for, of two units: the rest learns as without it."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.act, self.b = nn.Linear(6, 5), Sign(), nn.Linear(5, 4)
            self.c, self.act2, self.d, self.act3 = nn.Linear(5, 5), Sign(), nn.Linear(5, 5), Sign()
            self.drop = nn.Dropout(0.3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.act(self.a(x))
            return self.b(h), self.act3(self.d(self.drop(self.act2(self.c(h)))))

    torch.manual_seed(0)
    net = Heads().double()
    alone = copy.deepcopy(nn.Sequential(net.a, net.act, net.b))
    aside = copy.deepcopy([net.c, net.d])
    one = TargetPropagation(net, objective=lambda out, y: F.cross_entropy(out[0], y), order=order, inner_steps=steps)
    other = TargetPropagation(alone, order=order, inner_steps=steps)
    for x, y in _batches((6,), 4):
        one.step(x, y, torch.optim.SGD(net.parameters(), lr=0.1))
        other.step(x, y, torch.optim.SGD(alone.parameters(), lr=0.1))
    assert _gap(nn.Sequential(net.a, net.act, net.b), alone) < 1e-12
    assert all(_gap(a, b) == 0 for a, b in zip([net.c, net.d], aside, strict=True))


def test_what_it_tells_of_the_layers() -> None:
    net = nn.Sequential(nn.Linear(2, 2), Sign(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[1.0, 0.0]]))
    x = torch.tensor([[0.5, 0.5], [-0.5, 0.5]], dtype=torch.float64)
    trainer = TargetPropagation(net, objective=lambda out, y: (out * y).sum())
    told = trainer.backward(x, torch.tensor([[1.0], [-2.0]], dtype=torch.float64))
    (layer,) = told.layers
    assert layer.name == "1"
    assert float(layer.ignored) == 0.5  # the second unit is read with weight zero
    assert float(layer.moved) == 0.5  # the first unit: +1 → -1 on the first example, -1 → +1 on the second
    assert float(layer.loss) == pytest.approx((1 + 2) * (1 + float(torch.tanh(torch.tensor(0.5)))))


@pytest.mark.parametrize("order", ["together", "downwards"])
@pytest.mark.parametrize(("frozen", "moved"), [(0, "2.weight 5.weight 5.bias"), (5, "0.weight 0.bias 2.weight")])
def test_several_optimizers_and_a_frozen_layer(order: Any, frozen: int, moved: str) -> None:
    net = _mlp(SoftHinge()).double()
    net[frozen].requires_grad_(False)
    net[3].requires_grad_(False)
    before = copy.deepcopy(net)
    opts = [
        torch.optim.SGD(net[2].parameters(), lr=0.1),
        torch.optim.Adam([*net[0].parameters(), *net[5].parameters()]),
    ]
    TargetPropagation(net, inner_steps=2, order=order).step(*_batches((6,), 1)[0], *opts)
    changed = [name for name, p in net.named_parameters() if not torch.equal(p, before.get_parameter(name))]
    assert changed == moved.split()


def test_asking_for_targets_changes_nothing() -> None:
    net = _mlp(SoftHinge()).double()
    before = copy.deepcopy(net.state_dict())
    asked = TargetPropagation(net).targets(*_batches((6,), 1)[0])
    assert [layer.name for layer in asked] == ["1", "4"]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_it_refuses() -> None:
    plain = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    net = nn.Sequential(nn.Linear(6, 4), Sign(STE()), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="no Sign or Staircase modules"):
        TargetPropagation(plain)
    with pytest.raises(ValueError, match=r"'1' has the rule STE\(\), which is no loss"):
        TargetPropagation(net)
    with pytest.raises(ValueError, match="no such modules"):
        TargetPropagation(net, loss=Hinge(), maps={"nowhere": lambda z, h, g: g})
    with pytest.raises(ValueError, match="inner_steps=0"):
        TargetPropagation(net, loss=Hinge(), inner_steps=0)
    with pytest.raises(ValueError, match="order='up'"):
        TargetPropagation(net, loss=Hinge(), order="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one optimizer"):
        TargetPropagation(net, loss=Hinge()).step(torch.zeros(1, 6), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="OptimizedModule does not know"):
        TargetPropagation(torch.compile(net, backend="eager"), loss=Hinge())  # type: ignore[arg-type]


def test_any_loss_of_a_unit() -> None:
    """PerUnitLoss with the soft hinge written out is the soft hinge."""

    def soft(z: Tensor, t: Tensor) -> Tensor:
        return 1 - torch.tanh(t * z)

    nets = [_mlp(SoftHinge()).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x, y = _batches((6,), 1)[0]
    for net, loss in zip(nets, (None, PerUnitLoss(loss=soft)), strict=True):
        TargetPropagation(net, loss=loss).step(x, y, torch.optim.SGD(net.parameters(), lr=0.5))
    assert _gap(*nets) < 1e-14


def test_in_a_loop_of_gates() -> None:
    """Binary weights, swapped activations and unit gates: `backward` stands for `loss.backward()`."""
    start = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    batches = _batches((6,), 6)
    ends = []
    for layered in (True, False):
        net = copy.deepcopy(start)
        torch.manual_seed(5)
        run = pr.attach(net, pr.Stack(pr.Binarize(), pr.L0(price=0.01, at="units")), batches[0][0][:2])
        opt = torch.optim.SGD(run.parameter_groups(lr=0.1), momentum=0.9)
        trainer = TargetPropagation(net)
        for x, y in batches:
            opt.zero_grad()
            if layered:
                trainer.backward(x, y)
            else:
                F.cross_entropy(net(x), y).backward()
            run.penalty().backward()
            run.step(opt)
        ends.append(net)
    assert _gap(*ends) < 1e-12
    assert any("gate" in name for name in ends[0].state_dict())


def test_under_autocast() -> None:
    """Activations and targets in bfloat16, gradients of the weights in single precision, as without it."""
    nets = [_mlp(SoftHinge()) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x, y = torch.randn(12, 6), torch.randint(0, 4, (12,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        TargetPropagation(nets[0]).backward(x, y)
        loss = F.cross_entropy(nets[1](x), y)
    loss.backward()
    for mine, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert mine.grad.dtype == torch.float32
        assert torch.allclose(mine.grad, theirs.grad, rtol=0.05, atol=1e-3)
