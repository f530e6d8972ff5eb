"""Which layers lose a unit together: ours against Torch-Pruning's dependency graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from paring.analysis import wiring
from paring.models import build
from tests.removal import zoo

tp: Any = pytest.importorskip("torch_pruning", reason="Torch-Pruning comes with the extra 'bench'")
IMAGE = (3, 32, 32)
NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: build("resnet20", shape=IMAGE, classes=10),
    "wrn_16_4": lambda: build("wrn_16_4", shape=IMAGE, classes=10),
    "vgg16": lambda: build("vgg16", shape=IMAGE, classes=10),
    "lenet5_caffe": lambda: build("lenet5_caffe", shape=(1, 28, 28), classes=10),
    "pre_activation": zoo.pre_activation,
    "se_resnet": zoo.se_resnet,
    "mobilenet": zoo.mobilenet,
    "densenet": zoo.densenet,
    "unet": zoo.unet,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_the_same_layers_lose_a_unit_together(name: str) -> None:
    torch.manual_seed(0)
    net = NETS[name]().eval()
    x = torch.randn(2, *((1, 28, 28) if name == "lenet5_caffe" else IMAGE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dependencies = tp.DependencyGraph().build_dependency(net, x)
    paths = {module: path for path, module in net.named_modules()}
    groups = wiring(net, x).groups
    compared = 0
    for path, module in net.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or module.weight.shape[0] == 10:
            continue
        prune = tp.prune_conv_out_channels if isinstance(module, nn.Conv2d) else tp.prune_linear_out_channels
        theirs = {
            paths[dependency.target.module]
            for dependency, _ in dependencies.get_pruning_group(module, prune, idxs=[0])
            if isinstance(dependency.target.module, nn.Conv2d | nn.Linear)
            and dependencies.is_out_channel_pruning_fn(dependency.handler)
        }
        (ours,) = (group for group in groups if path in group.layers)
        assert set(ours.layers) == theirs, path
        compared += 1
    assert compared > 2
