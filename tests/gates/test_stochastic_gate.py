"""The stochastic gate: what training draws, what the test sees, holding, and its state through copies and files."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor

from paring.gates import StochasticGate, expected, support
from paring.gates.relax import (
    Concrete,
    HardConcrete,
    RectifiedGaussian,
    RectifiedLogistic,
    Relaxation,
    StraightThroughBernoulli,
)
from paring.gates.stochastic_gate import Phase
from paring.testing import same_state

FAMILIES: list[Relaxation] = [
    HardConcrete(),
    HardConcrete(test="median"),
    Concrete(),
    RectifiedGaussian(),
    RectifiedLogistic(),
    StraightThroughBernoulli(),
]
family = pytest.mark.parametrize("relaxation", FAMILIES, ids=lambda r: f"{type(r).__name__} {getattr(r, 'test', '')}")


def spread(relaxation: Relaxation, n: int = 9) -> StochasticGate:
    """A gate whose parameters go from closed to open."""
    gate = StochasticGate(relaxation, (n,))
    gate.log_alpha.data.copy_(torch.linspace(-6, 6, n))
    return gate


@family
def test_training_draws_from_the_relaxation(relaxation: Relaxation) -> None:
    gate = spread(relaxation)
    torch.manual_seed(7)
    z = gate()
    torch.manual_seed(7)
    assert torch.equal(z, relaxation.sample(gate.log_alpha, torch.rand(9)))
    assert not torch.equal(gate(), gate())
    (grad,) = torch.autograd.grad(gate().sum(), gate.log_alpha)
    assert bool(grad.isfinite().all())


@family
def test_test_time_is_the_estimate(relaxation: Relaxation) -> None:
    gate = spread(relaxation).eval()
    state = torch.get_rng_state()
    assert torch.equal(gate(), relaxation.estimate(gate.log_alpha))
    assert torch.equal(gate(), gate.value())
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn"
    assert torch.equal(gate.support(), gate.value() != 0)
    assert torch.equal(support(gate), gate.support().double())
    assert not gate.permanently_closed().any()
    assert not gate.support()[0]
    assert gate.support()[-1]


@family
def test_chance_is_differentiable_and_what_samples_do(relaxation: Relaxation) -> None:
    gate = spread(relaxation, 5)
    chance = expected(gate)
    assert torch.equal(chance, relaxation.prob_open(gate.log_alpha))
    (grad,) = torch.autograd.grad(chance.sum(), gate.log_alpha)
    assert bool((grad > 0).all()) or isinstance(relaxation, RectifiedGaussian | RectifiedLogistic)
    if isinstance(relaxation, Concrete):
        return  # never exactly zero
    wide = StochasticGate(relaxation, (4000, 5))
    wide.log_alpha.data.copy_(gate.log_alpha.detach().expand(4000, 5))
    found = (wide() != 0).double().mean(0)
    assert torch.allclose(found, chance.detach().double(), atol=4 * 0.5 / 4000**0.5)


def test_one_sample_per_minibatch_or_per_example() -> None:
    whole, each = (StochasticGate(HardConcrete(), (3, 4), per_example=flag) for flag in (False, True))
    assert whole(6).shape == whole().shape == (3, 4)
    assert each(6).shape == (6, 3, 4)
    assert each().shape == (3, 4)
    assert not torch.equal(each(6)[0], each(6)[1])
    assert (each.per_example, whole.per_example) == (True, False)
    assert each.eval()(6).shape == (3, 4)


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.8])
def test_starts_at_the_keep_probability(keep: float) -> None:
    for relaxation in FAMILIES:
        gate = StochasticGate(relaxation, (4000,), keep=keep)
        start = gate.log_alpha.detach()
        assert start.mean().item() == pytest.approx(relaxation.logits(keep), abs=1e-3)
        assert start.std().item() == pytest.approx(0.01, rel=0.1)
    exact = StochasticGate(HardConcrete(), (3,), keep=keep, spread=0.0).log_alpha.detach()
    assert torch.equal(exact, torch.full((3,), HardConcrete().logits(keep)))


def test_device_and_type_are_those_asked_for() -> None:
    gate = StochasticGate(HardConcrete(), (2,), dtype=torch.float64, device=torch.device("cpu"))
    assert gate.log_alpha.dtype == gate().dtype == gate.value().dtype == gate.prob_open().dtype == torch.float64
    half = StochasticGate(HardConcrete(), (2,), dtype=torch.bfloat16)
    assert half().dtype == torch.bfloat16


@pytest.mark.parametrize(("options", "why"), [
    ({"keep": 0.0}, "keep=0.0 has no finite logit"),
    ({"keep": 1.0}, "keep=1.0 has no finite logit"),
    ({"spread": -0.1}, r"StochasticGate\(spread=-0.1\): must not be negative"),
    ({"drop": 1.0}, r"StochasticGate\(drop=1.0\): a probability"),
])  # fmt: skip
def test_refused(options: dict[str, float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        StochasticGate(HardConcrete(), (2,), **options)  # type: ignore[arg-type]


def test_constrain_clamps_where_the_relaxation_says_so() -> None:
    clamped, free = (
        StochasticGate(HardConcrete(clamp=(-1.0, 2.0)), (3,)),
        StochasticGate(HardConcrete(clamp=None), (3,)),
    )
    for gate in (clamped, free):
        gate.log_alpha.data.copy_(torch.tensor([-9.0, 0.5, 9.0]))
        gate.constrain()
        assert gate.log_alpha.requires_grad
    assert clamped.log_alpha.tolist() == [-1.0, 0.5, 2.0]
    assert free.log_alpha.tolist() == [-9.0, 0.5, 9.0]


# --- holding --------------------------------------------------------------------------------------------------------


@family
def test_held_shows_its_estimate_and_stands_still(relaxation: Relaxation) -> None:
    gate = spread(relaxation)
    gate().sum().backward()
    value, open_ = gate.value().detach().clone(), gate.support()
    gate.freeze()
    assert gate.frozen
    assert gate.log_alpha.grad is None
    assert gate.training
    assert gate().requires_grad, "or DDP waits for its gradient"
    gate().sum().backward()
    assert torch.equal(gate.log_alpha.grad, torch.zeros(9))
    gate.rest()
    assert gate.log_alpha.grad is None
    with torch.no_grad():
        assert not gate().requires_grad
    assert not gate.eval()().requires_grad
    gate.train()
    assert torch.equal(gate(), value)
    assert torch.equal(gate(7), value)
    assert torch.equal(gate.support(), open_)
    assert torch.equal(gate.permanently_closed(), ~open_)
    assert torch.equal(gate.prob_open(), open_.to(value.dtype)), "open or closed, without a doubt"


def test_held_ends_sampling_per_example_and_clamping() -> None:
    gate = StochasticGate(HardConcrete(), (3,), per_example=True)
    gate.log_alpha.data.copy_(torch.tensor([-1e4, 0.0, 1e4]))
    gate.freeze()
    gate.constrain()
    assert gate.log_alpha.tolist() == [-1e4, 0.0, 1e4]
    assert not gate.per_example
    assert gate(5).shape == (3,)


def test_optimizers_do_not_move_a_held_gate() -> None:
    gate = spread(HardConcrete())
    weight = torch.ones(9, requires_grad=True)
    opt = torch.optim.AdamW([gate.log_alpha, weight], lr=0.1, weight_decay=0.1)
    for step in range(4):
        if step == 2:
            gate.freeze()
            before = gate.log_alpha.detach().clone()
        opt.zero_grad()
        (gate() * weight).sum().backward()
        gate.rest()
        opt.step()
    assert torch.equal(gate.log_alpha, before)
    assert not torch.equal(weight, torch.ones(9))


# --- state ----------------------------------------------------------------------------------------------------------


def round_trips(gate: StochasticGate) -> list[StochasticGate]:
    """The gate by deepcopy, by pickle, and by a state dict in a file without pickled code."""
    file = io.BytesIO()
    torch.save(gate.state_dict(), file)
    file.seek(0)
    fresh = StochasticGate(gate.relaxation, tuple(gate.shape), per_example=gate._per_example)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return [copy.deepcopy(gate), pickle.loads(pickle.dumps(gate)), fresh]


@family
@pytest.mark.parametrize("held", [False, True])
def test_state_survives(relaxation: Relaxation, held: bool) -> None:
    gate = spread(relaxation)
    if held:
        gate.freeze()
    for copy_ in round_trips(gate):
        assert same_state(gate.state_dict(), copy_.state_dict())
        assert copy_.frozen is held
        torch.manual_seed(1)
        first: Tensor = gate()
        torch.manual_seed(1)
        assert torch.equal(first, copy_())
        assert torch.equal(gate.permanently_closed(), copy_.permanently_closed())
        copy_.log_alpha.data.zero_()
        assert gate.log_alpha.detach().abs().sum().item() > 0, "a copy of its own"


def test_state_is_the_parameter_and_whether_it_is_held() -> None:
    gate = StochasticGate(HardConcrete(), (2,))
    assert set(gate.state_dict()) == {"log_alpha", "_extra_state"}
    assert gate.state_dict()["_extra_state"].equal(torch.tensor(0))
    gate.freeze()
    assert gate.state_dict()["_extra_state"].equal(torch.tensor(1))
    with pytest.raises(RuntimeError, match="size mismatch"):
        StochasticGate(HardConcrete(), (3,)).load_state_dict(gate.state_dict())


def test_it_says_what_it_is() -> None:
    text = repr(StochasticGate(HardConcrete(), (2, 3)))
    for part in ("(2, 3)", "HardConcrete(", "sampled"):
        assert part in text


# --- dropping out once held -----------------------------------------------------------------------------------------


def dropping(shared: bool = False) -> StochasticGate:
    gate = StochasticGate(HardConcrete(), (6,), drop=0.3, shared=shared)
    gate.log_alpha.data.copy_(torch.tensor([-99.0, 99.0, 0.0, 99.0, 1.0, -99.0]))
    return gate


def test_drop_begins_when_the_gate_is_held() -> None:
    gate = dropping()
    assert not gate.per_example
    assert gate(5).shape == (6,)
    gate.freeze()
    assert gate.per_example
    z = gate(20_000)
    assert z.shape == (20_000, 6)
    value = gate.value()
    assert torch.allclose(z.mean(0), value, atol=0.02)
    levels = torch.stack([torch.zeros(6), value / 0.7])
    assert bool(((z - levels[0]).abs().minimum((z - levels[1]).abs()) < 1e-5).all()), "zero, or the value over 1 - drop"
    assert not gate.log_alpha.grad
    assert torch.equal(gate(), value), "what is asked for no example is the value"
    assert torch.equal(gate.eval()(7), value)
    assert gate.support().tolist() == [False, True, True, True, True, False]


@pytest.mark.parametrize("drop", [1e-9, 0.25, 0.999999999])
def test_whatever_the_drop_the_mean_is_the_value(drop: float) -> None:
    gate = StochasticGate(HardConcrete(), (3,), drop=drop)
    gate.log_alpha.data.fill_(99.0)
    gate.freeze()
    z = gate(100_001)
    assert z.shape == (100_001, 3)
    share = (z != 0).double().mean().item()
    assert share == pytest.approx(1 - drop, abs=0.005)
    assert z[z != 0].allclose(torch.tensor(1 / (1 - min(round(drop * 65536), 65535) / 65536)))


def test_drop_of_a_folded_gate_is_seen_in_training_alone() -> None:
    gate = StochasticGate(HardConcrete(), (4,), drop=0.5)
    gate.log_alpha.data.fill_(1.0)
    gate.freeze()
    gate.note_folded()
    assert not gate.transparent
    assert set(gate(500).unique().tolist()) == {0.0, 2.0}
    assert gate.eval().transparent
    plain = StochasticGate(HardConcrete(), (4,))
    plain.freeze()
    plain.note_folded()
    assert plain.transparent


def test_drop_is_the_same_noise_after_a_cut() -> None:
    whole, cut = dropping(), dropping()
    for gate in (whole, cut):
        gate.freeze()
    keep = torch.tensor([1, 2, 3, 4])
    before = cut.shape
    cut.log_alpha = torch.nn.Parameter(cut.log_alpha.data[keep])
    cut.note_cut(before, {0: keep})
    torch.manual_seed(3)
    one = whole(8)
    torch.manual_seed(3)
    assert torch.equal(cut(8), one[:, keep])


def test_drop_is_one_sample_for_all_modules_that_share_the_gate() -> None:
    gate = dropping(shared=True)
    gate.freeze()
    one = gate(8)
    assert torch.equal(gate(8), one)
    gate.renew()
    assert not torch.equal(gate(8), one)


# --- shown, retired, folded -----------------------------------------------------------------------------------------


def test_what_is_shown_takes_the_place_of_the_sample() -> None:
    gate = StochasticGate(HardConcrete(), (3,))
    part = torch.tensor([1.0, 0.5])
    gate.show(part)
    assert gate() is gate(4) is gate.eval()() is part
    assert copy.deepcopy(gate)().shape == (3,)
    gate.show(None)
    assert torch.equal(gate(), gate.value())


def test_an_element_retires_after_it_was_hardly_ever_open_for_long_enough() -> None:
    gate = StochasticGate(HardConcrete(), (4,))
    gate.log_alpha.data.copy_(torch.tensor([-9.0, -9.0, -2.0, 3.0]))  # open with 0.001, 0.001, 0.39 and 0.99
    gate.retire(0.01, 10, 0)
    assert gate.retired is None
    assert not bool(gate.permanently_closed().any()), "off unless asked for"
    gate.may_retire()
    gate.retire(0.01, 10, 25)
    assert gate.quiet is not None
    assert gate.quiet.tolist() == [10, 10, 0, 0]
    gate.log_alpha.data[1] = 3.0
    gate.retire(0.01, 10, 25)
    gate.log_alpha.data[1] = -9.0
    gate.retire(0.01, 5, 25)
    assert gate.quiet.tolist() == [25, 5, 0, 0]
    assert gate.permanently_closed().tolist() == gate.retired.tolist() == [True, False, False, False]
    gate.log_alpha.data[0] = 9.0
    assert not any(bool(ask()[0] != 0) for ask in (gate, gate.value, gate.prob_open))
    assert bool((gate.prob_open()[1:] > 0).all())
    gate.retire(0.01, 5, 25)
    assert gate.retired.tolist() == [True, False, False, False], "for good"
    gate.permanently_closed()[1] = True
    assert not bool(gate.retired[1])


def test_the_likeliest_element_never_retires_and_a_held_gate_retires_nothing() -> None:
    gate = StochasticGate(HardConcrete(), (2, 2))
    gate.may_retire()
    gate.log_alpha.data.copy_(torch.tensor([[-9.0, -9.0], [-8.0, -9.0]]))
    gate.retire(0.01, 10, 10)
    assert gate.retired is not None
    assert gate.retired.tolist() == [[True, True], [False, True]]
    held = spread(HardConcrete())
    held.may_retire()
    held.freeze()
    held.retire(0.9, 10, 1)
    assert held.retired is not None
    assert not bool(held.retired.any())


def test_folded_weights_hold_the_value_and_the_gate_shows_one() -> None:
    gate = StochasticGate(HardConcrete(), (3,))
    gate.log_alpha.data.copy_(torch.tensor([-9.0, 0.5, 9.0]))
    value = gate.value().detach()
    assert 0 < float(value[1]) < 1
    assert gate.constant().tolist() == [1.0, 1.0, 1.0]
    gate.note_folded()
    assert not gate.folded, "only what is held is final"
    gate.freeze()
    assert gate.constant().tolist() == [1.0, *value[1:].tolist()]
    gate.note_folded()
    gate.note_folded()
    assert gate().tolist() == [0.0, 1.0, 1.0]
    assert not gate.log_alpha.requires_grad
    assert not gate.transparent
    assert gate.get_extra_state().item() == 2
    gate.log_alpha.data = gate.log_alpha.data[1:]
    gate.note_cut(torch.Size([3]), {0: torch.tensor([1, 2])})
    assert gate.transparent
    gate.show(torch.ones(1))
    assert not gate.transparent
    gate.show(None)
    gate.set_extra_state(torch.tensor(0))
    assert gate.log_alpha.requires_grad
    assert [gate.frozen, gate.folded, gate.transparent] == [False] * 3
    gate.set_extra_state(torch.tensor(1))
    assert gate.frozen
    assert not gate.folded


def test_a_phase_is_left_by_its_verbs_alone_and_a_state_of_no_phase_is_refused() -> None:
    gate = StochasticGate(HardConcrete(), (3,))
    gate.note_folded()
    assert gate.phase is Phase.SAMPLED, "only what is frozen is final"
    gate.freeze()
    assert gate.phase is Phase.FROZEN
    gate.note_folded()
    assert gate.phase is Phase.FOLDED
    gate.freeze()
    assert gate.phase is Phase.FOLDED, "a folded gate is frozen already"
    for state in (5, -1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="Phase"):
            gate.set_extra_state(torch.tensor(state))
    assert gate.phase is Phase.FOLDED
