"""Masks on weights: where they go, what they close, what is put aside, and what an optimizer forgets."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

import paring as pr
from paring.core import At, Probe, put
from paring.gates import MaskGate, Site, masking
from paring.select import NM

X = torch.randn(2, 6)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


@functools.cache
def probe() -> Probe:
    return pr.attach(mlp(), pr.L0(price=1.0), X).probe


def prepared(at: At = "weights") -> tuple[nn.Sequential, tuple[Site, ...]]:
    """A network with masks, all open."""
    net = mlp()
    return net, masking.put_masks(net, probe(), at)


def some_masks() -> dict[str, Tensor]:
    first = torch.ones(4, 6, dtype=torch.bool)
    first[0] = False
    return {"0": first, "2": torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 3)}


def test_masks_go_where_they_are_asked_for_in_the_order_of_the_network() -> None:
    net, found = prepared(("weights:2", "weights:0"))
    assert [site.layer for site in found] == ["0", "2"]
    assert list(masking.weights_of(net, found)) == ["0", "2"]
    assert masking.weights_of(net, found)["2"] is net[2].weight is masking.weight_of(net, found[1])
    assert masking.mask_of(net, found[0]) is net[0].weight_gate
    assert all(bool(mask.all()) for mask in masking.masks_of(net, found).values())
    one, alone = prepared("weights:2")
    assert [site.layer for site in alone] == ["2"]
    assert one[0].__class__ is nn.Linear
    with pytest.raises(ValueError, match="nowhere"):
        prepared("weights:nowhere")


def test_groups_of_inputs_are_those_of_the_pattern() -> None:
    net, _ = prepared()
    assert masking.input_groups(net) == {}
    other = mlp()
    masking.put_masks(other, probe(), "weights:2", NM(2, 4))
    assert masking.input_groups(other) == {"2": 4}
    third = mlp()
    masking.put_masks(third, probe(), "weights:0", NM(1, 2))
    assert masking.input_groups(third) == {"0": 2}


def test_an_embedding_has_no_groups_of_inputs() -> None:
    net, layer = mlp(), nn.Sequential(nn.Embedding(4, 6))
    masking.put_masks(net, probe(), "weights:0", NM(1, 2))
    put(layer[0], "weights", MaskGate((4, 6), input_group=2))
    assert masking.input_groups(layer) == {}
    assert masking.input_groups(nn.Sequential(net, layer)) == {"0.0": 2}


def test_set_masks_takes_bits_and_numbers_and_leaves_weights_alone() -> None:
    net, found = prepared()
    before = {name: w.detach().clone() for name, w in masking.weights_of(net, found).items()}
    masking.set_masks(net, found, some_masks())
    for name, mask in masking.masks_of(net, found).items():
        assert mask.dtype == torch.bool
        assert torch.equal(mask, some_masks()[name] != 0)
        assert torch.equal(masking.weights_of(net, found)[name], before[name])
    masking.clear_closed(net, found)
    for name, w in masking.weights_of(net, found).items():
        assert torch.equal(w, before[name] * some_masks()[name])


def test_what_closes_is_put_aside_and_comes_back_when_it_opens() -> None:
    net, found = prepared()
    before = {name: w.detach().clone() for name, w in masking.weights_of(net, found).items()}
    masking.put_aside(net, found, some_masks())
    for name, w in masking.weights_of(net, found).items():
        assert torch.equal(w, before[name] * some_masks()[name])
        assert torch.equal(masking.latent_of(net, found)[name], before[name])
    gate = masking.mask_of(net, found[0])
    assert gate.aside is not None
    assert torch.equal(gate.aside, before["0"] * ~some_masks()["0"])
    masking.put_aside(net, found, {name: 1 - mask.float() for name, mask in some_masks().items()})
    for name, w in masking.weights_of(net, found).items():
        assert torch.equal(w, before[name] * (some_masks()[name] == 0))
    masking.put_aside(net, found, {name: torch.ones_like(w) for name, w in before.items()})
    assert all(torch.equal(w, before[name]) for name, w in masking.weights_of(net, found).items())


def test_an_optimizer_forgets_what_has_the_shape_of_the_weight() -> None:
    weight, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    opt = torch.optim.Adam([weight, other], amsgrad=True)
    (weight * other).sum().backward()
    opt.step()
    opt.state[weight] |= {"rows": torch.ones(2, 1), "name": "w"}
    before = {key: v.clone() for key, v in opt.state[weight].items() if isinstance(v, Tensor)}
    masking.forget(opt, weight, torch.tensor([[True, False], [False, False]]))
    state = opt.state[weight]
    for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert float(state[key][0, 0]) == 0
        assert torch.equal(state[key].flatten()[1:], before[key].flatten()[1:])
        assert bool((opt.state[other][key] != 0).all())
    assert all(torch.equal(state[key], before[key]) for key in ("step", "rows"))
    masking.forget(torch.optim.SGD([weight], lr=0.1), weight, torch.ones(2, 2, dtype=torch.bool))
