"""Parts of the compressors against naive twins."""

from __future__ import annotations

import heapq
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.nn import functional as F

from paring.compression import Codebooks, Combined, EntropyRounding, KMeans, SoftSharing, Stage, Training, compress
from paring.compression.entropy_rounding import Latent, likelihood_bits
from paring.compression.grid_rounding import rounded
from paring.compression.hashed import Hash, hashed
from paring.compression.huffman import estimate, huffman_bits
from paring.compression.noise import dropout
from paring.compression.soft_sharing import Mixture, looked_up
from paring.compression.tensors import float_bytes, gridded, is_binary, ties, weights_of
from paring.compression.through_file import through_file
from paring.compression.training import Descent
from paring.core import ParingWarning
from paring.methods import GMP, L0
from tests.compression.nets import Tied, task_of


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.05, 0.5]), st.booleans())
def test_grid_rounding_is_what_a_loop_chooses(seed: int, price: float, curved: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    h = torch.rand(6, 9, generator=generator, dtype=torch.float64) + 0.1 if curved else None
    found = rounded(weight, 0.37, price, h, sweeps=3)
    flat = (weight.flatten() / 0.37).tolist()
    scale = [1.0] * 54 if h is None else (h.flatten() / h.mean()).tolist()
    chosen = [round(v) for v in flat]
    low, high = min(0, min(math.floor(v) for v in flat)), max(0, max(math.floor(v) + 1 for v in flat))
    for _ in range(3 if price else 0):
        count = {q: chosen.count(q) + 0.5 for q in range(low, high + 1)}
        total = sum(count.values())

        def cost(i: int, q: int, count: dict[int, float] = count, total: float = total) -> float:
            return scale[i] * (flat[i] - q) ** 2 - price * math.log2(count[q] / total)

        fresh = [min((math.floor(v), math.floor(v) + 1, 0), key=lambda q, i=i: cost(i, q)) for i, v in enumerate(flat)]
        if fresh == chosen:
            break
        chosen = fresh
    assert found.flatten().tolist() == chosen


def test_bits_of_the_mixture_of_laplace_distributions() -> None:
    scales, mixture = torch.tensor([-0.7, 0.9], dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    value = torch.linspace(-9, 9, 37, dtype=torch.float64)
    found = likelihood_bits(value, scales, mixture)
    share = 1 / (1 + math.exp(-0.4))
    for v, bits in zip(value.tolist(), found.tolist(), strict=True):
        mass = sum(
            p * (stats.laplace.cdf(v + 0.5, scale=math.exp(s)) - stats.laplace.cdf(v - 0.5, scale=math.exp(s)))
            for p, s in ((share, -0.7), (1 - share, 0.9))
        )
        assert bits == pytest.approx(-math.log2(mass + 1e-12), abs=1e-8)
    whole = torch.arange(-200, 201, dtype=torch.float64)
    assert (0.5 ** likelihood_bits(whole, scales, mixture)).sum() == pytest.approx(1, abs=1e-8)


def test_latents_follow_the_loss_and_the_mean_bits() -> None:
    """Gradients by looking slopes up on the grid, against autograd through bits with many draws of the noise."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.1 * torch.randn(40, 50, generator=generator, dtype=torch.float64)
    weight[weight.abs() < 0.05] = 0.0
    one = Latent(weight, 0.06)
    with torch.no_grad():
        one.log_step.fill_(0.2)
        one.scales.copy_(torch.tensor([-1.0, 0.5]))
        one.mixture.fill_(0.3)
    sq = one.rounded()
    torch.testing.assert_close(sq, (weight / 0.06 / math.exp(0.2)).round() * math.exp(0.2) * 0.06)
    grad = 1e-2 * torch.randn(40, 50, generator=generator, dtype=torch.float64)
    one.follow(grad, 1e-3, True)

    theta, log_step, scales, mixture = (
        p.detach().clone().requires_grad_() for p in (one.theta, one.log_step, one.scales, one.mixture)
    )
    x = theta / log_step.exp()
    noise = (torch.arange(200) + 0.5) / 200 - 0.5
    bits = sum(likelihood_bits(x + float(u), scales, mixture).sum() for u in noise) / 200
    through = (x.round() - x).detach() + x  # straight through
    loss = (grad * through * log_step.exp() * 0.06).sum() + 1e-3 * bits
    expected = torch.autograd.grad(loss, [theta, log_step, scales, mixture])
    found = (one.theta.grad, one.log_step.grad, one.scales.grad, one.mixture.grad)
    for mine, naive in zip(found, expected, strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, naive, rtol=0, atol=0.015 * float(naive.abs().max()))
    one.follow(grad, 1e-3, False)  # the slope stays, the density does not learn
    torch.testing.assert_close(one.theta.grad, found[0])
    assert one.scales.grad is None


def test_the_mixture_of_normals() -> None:
    mixture = Mixture(torch.randn(500, generator=torch.Generator().manual_seed(0)), 4, 0.7)
    with torch.no_grad():
        mixture.logits.copy_(torch.tensor([0.3, -0.2, 0.0]))
        mixture.log_variances.copy_(torch.tensor([-4.0, -1.0, 0.0, -2.0]))
    value = torch.linspace(-2, 2, 11)
    shares = [0.7, *(0.3 * mixture.logits.detach().softmax(0)).tolist()]
    means = [0.0, *mixture.means.tolist()]
    deviations = (0.5 * mixture.log_variances).exp().tolist()
    found = mixture.log_joint(value)
    for i, v in enumerate(value.tolist()):
        for j, (p, m, s) in enumerate(zip(shares, means, deviations, strict=True)):
            assert float(found[i, j].detach()) == pytest.approx(math.log(p) + stats.norm.logpdf(v, m, s), abs=1e-4)
        likeliest = int(found[i].argmax())
        assert float(mixture.nearest(torch.tensor([v]))) == pytest.approx(means[likeliest], rel=1e-3, abs=1e-6)


def test_a_training_says_how_far_it_is() -> None:
    seen: list[tuple[int, int | None]] = []
    x, y = torch.randn(25, 3), torch.zeros(25, dtype=torch.long)
    training = Training.of(F.cross_entropy, x, y, batch=10, watch=lambda p: seen.append((p.done, p.total)))
    net = nn.Linear(3, 2)
    descent = Descent(training, list(net.parameters()), 1.5)
    descent.run(net, 0.7)
    descent.run(net)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_training_that_diverges_is_no_candidate() -> None:
    """Weights that are no numbers any more reach the bound, which refuses them, and no index."""
    for compressor in (
        EntropyRounding(rates=(1e-6,), epochs=1, lr=1e30),
        SoftSharing(rates=(1e-6,), epochs=1, lr=1e30),
    ):
        net, objective, _, training = task_of("mlp")
        with pytest.warns(ParingWarning, match="no candidate has a finite loss, .* lower the learning rate"):
            found = compress(
                net,
                objective.batches,
                objective.loss,
                max_loss_increase=math.inf,
                compressor=compressor,
                training=training,
            )
        assert found.chosen is None
        assert found.loss == found.base_loss


def test_the_prior_is_looked_up() -> None:
    """Value, slopes and the mixture's gradients, against autograd over all weights."""
    generator = torch.Generator().manual_seed(1)
    weights = [0.1 * torch.randn(30, 20, generator=generator), 0.3 * torch.randn(7, 5, 3, generator=generator)]
    mixture = Mixture(torch.cat([w.flatten() for w in weights]), 5, 0.9)
    learned = [mixture.means, mixture.log_variances, mixture.logits]
    value, slopes = looked_up(weights, mixture)
    found = torch.autograd.grad(value, learned)
    free = [w.clone().requires_grad_() for w in weights]
    naive = -torch.cat([mixture.log_joint(w.flatten()).logsumexp(1) for w in free]).sum()
    expected = torch.autograd.grad(naive, [*learned, *free])
    assert value.item() == pytest.approx(naive.item(), rel=1e-4)
    for mine, right in zip([*found, *slopes], expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=0, atol=0.02 * float(right.abs().max()))
    same = [torch.full((2, 3), 0.25)]
    assert all(bool(slope.isfinite().all()) for slope in looked_up(same, mixture)[1])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_huffman_length_is_that_of_a_tree(symbols: list[int]) -> None:
    counts = {s: symbols.count(s) for s in symbols}
    if len(counts) == 1:
        assert huffman_bits(symbols) == len(symbols)
        return
    heap: list[tuple[int, int, Any]] = [(n, i, s) for i, (s, n) in enumerate(counts.items())]
    heapq.heapify(heap)
    number = len(heap)
    while len(heap) > 1:
        (n1, _, left), (n2, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (n1 + n2, number, (left, right)))
        number += 1

    def depth(node: Any, at: int = 0) -> dict[int, int]:
        return {**depth(node[0], at + 1), **depth(node[1], at + 1)} if isinstance(node, tuple) else {node: at}

    lengths = depth(heap[0][2])
    assert huffman_bits(symbols) == sum(lengths[s] for s in symbols)


def test_the_sparse_estimate_by_hand() -> None:
    net = nn.Linear(50, 1)
    with torch.no_grad():
        net.weight.zero_()
        net.weight[0, 3], net.weight[0, 4], net.weight[0, 44] = 0.5, 0.25, 0.5
    # gaps 3, 0, 39: the last takes one filler of 32, then 7. Four different gaps: 2 bits each. Indices 0.5, 0.25, filler,
    # 0.5: lengths 1, 2, 2, 1. Two codewords and one bias at 32 bits.
    assert estimate(net) == math.ceil((4 * 2 + 6 + 64 + 32) / 8)


def test_hashed_weights_are_values_with_signs() -> None:
    net = Tied()
    twin = hashed(net, 0.25, seed=3)
    assert twin.out.weight.data_ptr() != net.out.weight.data_ptr()
    rule, values = twin.conv.parametrizations.weight[0], twin.conv.parametrizations.weight.original
    assert isinstance(rule, Hash)
    assert len(values) == 75
    for o, i, t in ((0, 0, 0), (9, 4, 2), (3, 7, 1)):
        expected = values[rule.where[o, i, t]] * rule.sign[o, i, t]
        assert twin.conv.weight[o, i, t] == expected
    shared = (rule.where == 5).nonzero().tolist()
    signed = net.conv.weight.detach() * rule.sign
    mean = sum(float(signed[tuple(at)]) for at in shared) / len(shared)
    assert float(values[5].detach()) == pytest.approx(mean, abs=1e-6)
    assert torch.equal(twin.out.weight, twin.words.weight)
    assert twin.out.parametrizations.weight.original is twin.words.parametrizations.weight.original
    decoded, size = through_file(twin)
    assert torch.equal(decoded.conv.weight, twin.conv.weight)
    assert size < through_file(net)[1] / 2


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 8))
def test_the_grid_is_the_nearest(seed: int, bits: int) -> None:
    tensor = torch.randn(40, generator=torch.Generator().manual_seed(seed))
    found = gridded(tensor, bits)
    step = float(torch.tensor(float(tensor.abs().max()) / (2 ** (bits - 1) - 1)).half())
    assert len(found.unique()) <= 2**bits - 1
    for old, new in zip(tensor.tolist(), found.tolist(), strict=True):
        assert new == float(torch.tensor(round(old / step) * step).half())
    assert gridded(torch.zeros(3), 4).tolist() == [0, 0, 0]


def test_what_is_binary() -> None:
    signs = torch.tensor([[1.0, -1, 1], [-1, 1, 1]])
    assert is_binary(signs)
    assert is_binary(0.3 * signs)
    assert is_binary(torch.tensor([[2.0], [0.5]]) * signs)
    assert not is_binary(signs * torch.tensor([1.0, 2.0, 1.0]))
    assert not is_binary(torch.zeros(2, 2))
    assert not is_binary(torch.zeros(0, 3))


def test_ties_are_counted_once() -> None:
    net = Tied()
    assert ties(net) == {"out.weight": "words.weight"}
    assert list(weights_of(net)) == ["words.weight", "conv.weight"]
    assert float_bytes(net) == 4 * (120 + 300 + 10 + 4 * 10) + 8
    decoded, _ = through_file(net)
    assert decoded.out.weight is decoded.words.weight


def test_distillation_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, teacher = (
        torch.randn(6, 3, generator=generator),
        torch.tensor([0, 1, 3, 2, 0, 1]),
        torch.randn(6, 4, generator=generator),
    )
    net = nn.Linear(3, 4)
    training = Training.of(F.cross_entropy, x, y, batch=6, teacher=teacher, share=0.3, temperature=2.0)
    (batch,) = training.batches(0)
    out = net(x).detach().double()
    p, log_q = (teacher.double() / 2).softmax(1), (out / 2).log_softmax(1)
    divergence = sum(float(p[i, j] * (p[i, j].log() - log_q[i, j])) for i in range(6) for j in range(4)) / 6
    plain = -sum(float(out[i].log_softmax(0)[y[i]]) for i in range(6)) / 6
    assert float(training.loss(net, batch).detach()) == pytest.approx(0.7 * plain + 0.3 * 4 * divergence, rel=1e-5)


def test_every_epoch_sees_everything_once_in_its_own_order() -> None:
    x = torch.arange(10.0)[:, None]
    training = Training.of(F.mse_loss, x, x, batch=3, seed=1)
    assert training.steps == 3, "the tenth goes with the batch before it"
    assert [len(batch[0]) for batch in training.batches(0)] == [3, 3, 4]
    orders = [torch.cat([batch[0] for batch in training.batches(epoch)])[:, 0].tolist() for epoch in (0, 1, 0)]
    assert sorted(orders[0]) == x[:, 0].tolist()
    assert orders[0] == orders[2] != orders[1]


def test_the_learning_rate_falls_along_a_cosine() -> None:
    weight, seen = nn.Parameter(torch.zeros(1)), []
    training = Training(lambda net, batch: weight.sum(), lambda epoch: [None] * 4, 4, lr=0.2)
    descent = Descent(training, [weight], 2.5, final=0.1)
    descent.run(nn.Identity(), 1, after=lambda: seen.append(descent.optimizer.param_groups[0]["lr"]))
    assert not descent.done
    descent.run(nn.Identity(), after=lambda: seen.append(descent.optimizer.param_groups[0]["lr"]))
    assert descent.done
    assert seen == pytest.approx([0.2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t / 10))) for t in range(10)])


def test_dropout_is_there_for_a_while_and_in_train_mode_only() -> None:
    net = nn.Sequential(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 1))
    x = torch.ones(4, 50)
    plain = net(x)
    with dropout(net, 0.5, 0.5):
        assert torch.equal(net.eval()(x), plain)
        net.train()
        assert not torch.equal(net(x)[0], net(x)[1])
    assert torch.equal(net(x), plain)
    with pytest.raises(ValueError, match="rates"), dropout(net, 1.0, 0.0):
        pass


@pytest.mark.parametrize(
    "stage",
    [Stage(GMP(density=0.4, every=1), 3), Stage(L0(price=0.02, at="units"), 8, lr=0.03, inputs=0.1, hidden=0.1)],
)
def test_pruned_removed_shared(stage: Stage) -> None:
    net, objective, _, training = task_of("mlp")
    found = compress(
        net,
        objective.batches,
        objective.loss,
        max_loss_increase=math.inf,
        compressor=Combined((stage,), Codebooks(values=5, keep_zeros=True, rounds=3, mu=1e-2)),
        training=training,
        example=torch.zeros(2, 8),
    )
    weights = weights_of(found.net)
    pruned, shared = found.steps[0], found.steps[-1]
    assert shared.bytes < pruned.bytes
    assert all(len(weight.unique()) <= 6 for weight in weights.values())
    kept = sum(int((weight != 0).sum()) for weight in weights.values())
    if isinstance(stage.method, GMP):
        assert kept <= 0.4 * (8 * 24 + 24 * 4) + 1
    else:
        assert kept < 8 * 24 + 24 * 4
        assert found.net[0].out_features < 24


def test_folded_norms_cost_nothing() -> None:
    net, objective, _, _ = task_of("mlp")
    told: dict[str, Any] = {"max_loss_increase": 0.05, "compressor": KMeans((16, 8))}
    stored = compress(net, objective.batches, objective.loss, **told)
    folded = compress(net, objective.batches, objective.loss, example=torch.zeros(2, 8), fuse_norms=True, **told)
    assert isinstance(folded.net[1], nn.Identity)
    assert folded.chosen is not None
    assert folded.bytes < stored.bytes
    assert folded.base_bytes == stored.base_bytes == float_bytes(net)
    assert objective(folded.net) == folded.loss <= objective(net) + 0.05
    with pytest.raises(ValueError, match="example"):
        compress(net, objective.batches, objective.loss, fuse_norms=True, **told)
    with pytest.raises(ValueError, match="small_bits=1"):
        compress(net, objective.batches, objective.loss, small_bits=1, **told)
