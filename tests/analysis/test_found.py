"""Operations that act on each channel alone, found out: what is claimed, against brute-force Jacobians in float64.

Of every result entry, which channels move it is found by moving one channel after the other. An operation that is let
through has to give each entry the label of the only channel that moves it; what mixes channels has to be a barrier.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.analysis.capture import Captured, capture
from paring.analysis.interpret import Interpretation, interpret
from paring.removal import compact

Function = Callable[[Tensor], Tensor]
CHANNELS, SHAPE = 4, (2, 3, 5, 6)


class Then(nn.Module):
    """A layer, a function of its channels, and what reads them."""

    def __init__(self, layer: nn.Module, function: Function, reader: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.reader, self.function = layer, reader, function

    def forward(self, x: Tensor) -> Tensor:
        made = self.function(self.layer(x))
        return made if self.reader is None else self.reader(made)


def patches(h: Tensor) -> Tensor:
    return F.unfold(h, 3)


def folded(h: Tensor) -> Tensor:
    return F.fold(F.unfold(h, 3, padding=1), (5, 6), 3, padding=1)


def sampled(h: Tensor) -> Tensor:
    turned = torch.tensor([[[0.5, 0.1, 0.0], [0.0, 0.7, 0.1]]], dtype=h.dtype).expand(len(h), -1, -1)
    return F.grid_sample(h, F.affine_grid(turned, [len(h), 1, 4, 4], align_corners=False), align_corners=False)


# What each channel goes through alone.
ALONE: dict[str, Function] = {
    "roll": lambda h: h.roll((1, -2), (2, 3)),
    "normalize": lambda h: F.normalize(h.flatten(2), dim=2),
    "norm": lambda h: h.norm(dim=(2, 3)),
    "linalg_norm": lambda h: torch.linalg.norm(h, dim=3),
    "std": lambda h: h.std((2, 3)),
    "var": lambda h: h.var(dim=3, keepdim=True),
    "var_mean": lambda h: torch.var_mean(h, (2, 3))[0],
    "gt": lambda h: torch.where(h > 0.1, h, -0.5 * h),
    "lt and masked_fill": lambda h: h.masked_fill(h < 0, 0.25),
    "where over channels of two": lambda h: torch.where(h > h.roll(1, 2), h, h.roll(1, 2)),
    "max over places": lambda h: h.max(2).values + h.min(2).values,
    "max of two": lambda h: torch.max(h, h.roll(1, 3)),
    "index_select": lambda h: h.index_select(2, torch.tensor([3, 0, 0])),
    "index": lambda h: h[:, :, torch.tensor([1, 4]), torch.tensor([0, 2])],
    "unfold": lambda h: h.unfold(3, 3, 2),
    "patches": patches,
    "folded": folded,
    "grid_sample": sampled,
    "addcmul": lambda h: torch.addcmul(h, h.roll(1, 2), h.sin(), value=0.5),
    "addcdiv": lambda h: torch.addcdiv(h, h.sin(), h.square() + 1),
    "lerp": lambda h: torch.lerp(h, h.roll(2, 3), 0.3),
    "lerp with a tensor": lambda h: torch.lerp(h, h.sin(), h.sigmoid()),
    "pow of tensors": lambda h: torch.pow(h.abs() + 0.1, h.sigmoid()),
    "clamp with tensors": lambda h: torch.clamp(h, h.sin() - 0.1, h.square() + 0.1),
    "cumsum": lambda h: h.cumsum(2),
    "cumprod": lambda h: h.cumprod(3),
    "einsum of one": lambda h: torch.einsum("bcij->bcj", h),
    "einsum of a diagonal": lambda h: torch.einsum("bcii->bci", h[:, :, :5, :5]),
    "logsumexp": lambda h: h.logsumexp((2, 3)),
    "prod": lambda h: h.prod(2),
    "median": lambda h: h.flatten(2).median(2).values,
    "quantile": lambda h: h.flatten(2).quantile(0.3, 2),
    "instance_norm": lambda h: F.instance_norm(h),
    "sort": lambda h: h.sort(3).values,
    "topk": lambda h: h.topk(2, 3).values,
    "argmax": lambda h: h.flatten(2).argmax(2).to(h.dtype),
    "tril": lambda h: h.tril(),
    "diff": lambda h: h.diff(dim=2),
    "atan2": lambda h: torch.atan2(h, h.roll(1, 2)),
    "hypot": lambda h: torch.hypot(h, h.sin()),
    "layer_norm over places": lambda h: torch.layer_norm(h, (6,)),
    "long": lambda h: (3 * h).long().to(h.dtype),
    "spectrum": lambda h: torch.fft.rfft2(h).abs(),
    "scatter_add": lambda h: h.scatter_add(2, (h > 0).long(), h.sin()),
    "gather by order": lambda h: h.gather(3, h.argsort(3)),
    "index_add": lambda h: h.index_add(2, torch.tensor([0, 0, 1, 3, 4]), h.sin()),
    "pixels to the front": lambda h: h.permute(2, 3, 0, 1).roll(1, 0).permute(2, 3, 0, 1).contiguous(),
    "renorm": lambda h: h.renorm(2, 1, 0.7),
    "floor_divide": lambda h: h.floor_divide(0.3),
    "addcmul_": lambda h: h.clone().addcmul_(h.sin(), h.cos()),
    "cross correlation of places": lambda h: torch.cdist(h, h),
}
if torch.__version__ < (2, 8):  # cannot trace it
    del ALONE["quantile"]
# What mixes channels, or puts them in another order.
MIXED: dict[str, Function] = {
    "roll": lambda h: h.roll(1, 1),
    "roll of all": lambda h: h.roll(1),
    "normalize": lambda h: F.normalize(h, dim=1),
    "norm": lambda h: h.norm(dim=1),
    "std": lambda h: h.std(1, keepdim=True),
    "max": lambda h: h.max(1).values,
    "max over all": lambda h: h.max().view(1),
    "cumsum": lambda h: h.cumsum(1),
    "logsumexp": lambda h: h.logsumexp(1),
    "median": lambda h: h.median(1).values,
    "sort": lambda h: h.sort(1).values,
    "topk": lambda h: h.topk(4, 1).values,
    "argmax": lambda h: h.argmax(1).to(h.dtype),
    "diff": lambda h: h.diff(dim=1),
    "einsum": lambda h: torch.einsum("bcij->bij", h),
    "cov": lambda h: torch.einsum("bcij,bdij->bcd", h, h),
    "renorm": lambda h: h.renorm(2, 0, 0.7),
    "local response": lambda h: F.local_response_norm(h, 3, alpha=1.0),
    "spectrum": lambda h: torch.fft.fft(h, dim=1).abs(),
    "layer_norm": lambda h: torch.layer_norm(h, (4, 5, 6)),
    "tril": lambda h: h.permute(0, 2, 3, 1).tril(),
    "gather": lambda h: h.gather(1, h.argsort(1)),
    "index_select": lambda h: h.index_select(1, torch.tensor([3, 0, 1, 2])),
    "bilinear pool": lambda h: torch.einsum("bcij,bdij->bcd", h, h.sin()),
    "softmax": lambda h: h.softmax(1),
    "lp_pool over channels": lambda h: F.lp_pool1d(h.flatten(2).transpose(1, 2), 2, 2, 1),
    "rank": lambda h: (h.unsqueeze(1) > h.unsqueeze(2)).to(h.dtype).sum(2),
    "cdist": lambda h: torch.cdist(h.flatten(2), h.flatten(2)),
}


def traced(function: Function) -> tuple[Captured, Interpretation]:
    torch.manual_seed(0)
    net = Then(nn.Conv2d(3, CHANNELS, 1), function).double().eval()
    captured = capture(net, torch.randn(SHAPE, dtype=torch.float64))
    return captured, interpret(net, captured, training=False, free=True)


def movers(function: Function, h: Tensor) -> Tensor:
    """(channels, *result): does moving this channel move this entry?"""
    base = function(h)
    found = []
    for channel in range(CHANNELS):
        moves = torch.zeros_like(base, dtype=torch.bool)
        for size in (1e-3, -0.3, 2.0, -5.0):
            other = h.clone()
            noise = torch.randn(h[:, channel].shape, dtype=h.dtype, generator=torch.Generator().manual_seed(channel))
            other[:, channel] += size * noise
            moves |= function(other) != base
        found.append(moves)
    return torch.stack(found)


@pytest.mark.parametrize("name", ALONE)
def test_what_each_channel_goes_through_alone_is_let_through_with_the_right_labels(name: str) -> None:
    function = ALONE[name]
    captured, analysis = traced(function)
    reasons = set(analysis.kept.values())
    assert reasons == {"network output"}
    h = torch.randn(2, CHANNELS, *SHAPE[2:], dtype=torch.float64)
    truth = movers(function, h)
    assert int(truth.sum(0).max()) == 1
    output = next(node for node in captured.nodes if node.op == "output")
    (laid,) = analysis.layouts[output.all_input_nodes[0]]
    box = laid.box
    for place, dim in enumerate(sorted(laid.dims)):
        assert laid.dims[place] == dim
    size = [laid.shape[d] if d in laid.dims else 1 for d in range(len(laid.shape))]
    labels = box.reshape(size).expand(laid.shape)
    units = next(site.units for site in analysis.sites)
    for channel, unit in enumerate(units.tolist()):
        assert not bool((truth[channel] & (labels != unit)).any())


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_channels_is_a_barrier(name: str) -> None:
    function = MIXED[name]
    h = torch.randn(2, CHANNELS, *SHAPE[2:], dtype=torch.float64)
    some = [0, 2, 3]
    try:
        alike = torch.equal(function(h[:, some]), function(h)[:, some])
    except (RuntimeError, IndexError):
        alike = False
    assert not alike
    analysis = traced(function)[1]
    unit = {int(u) for u in analysis.sites[0].units}
    assert unit <= set(analysis.kept)
    assert not any(reason == "network output" for reason in analysis.kept.values()) or name == "tril"


@pytest.mark.parametrize("name", [name for name in ALONE if name not in ("patches", "unfold")])
def test_dead_channels_go_through_them_exactly(name: str) -> None:
    torch.manual_seed(0)
    made = ALONE[name](torch.randn(2, CHANNELS, *SHAPE[2:]))
    reader: nn.Module = nn.Conv2d(CHANNELS, 2, 1) if made.dim() == 4 else nn.Conv1d(CHANNELS, 2, 1)
    layer = nn.Conv2d(3, CHANNELS, 1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter[1:3] = 0
    net = Then(layer, ALONE[name], reader if made.dim() > 2 else nn.Linear(CHANNELS, 2)).double().eval()
    x = torch.randn(SHAPE, dtype=torch.float64)
    small, report = compact(net, x)
    assert not report.rolled_back
    assert small.get_parameter("layer.weight").shape[0] == CHANNELS - 2
    torch.testing.assert_close(small(x), net(x), rtol=1e-12, atol=1e-12)
