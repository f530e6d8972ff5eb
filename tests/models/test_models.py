"""The models: known parameter counts, shapes, initialisation, export, and what is refused."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paring.models import MODELS, build, lenet5_caffe, lenet_300_100, mlp, resnet20, vgg11, wide_resnet, wrn_16_4

Shape = tuple[int, int, int]
GREY, COLOUR = (1, 28, 28), (3, 32, 32)
OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": {"widths": (7, 5)},
    "wide_resnet": {"depth": 10, "width": 1, "dropout": 0.3},
}
SMALL: dict[str, Shape] = dict.fromkeys(("mlp", "lenet_300_100", "lenet5_caffe"), GREY)
SMALL |= dict.fromkeys(("vgg11", "resnet20", "wide_resnet"), COLOUR)


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "expected"),
    [
        ("lenet_300_100", GREY, 10, 266_610),
        ("lenet5_caffe", GREY, 10, 431_080),
        ("vgg11", COLOUR, 10, 9_228_362),
        ("vgg13", COLOUR, 10, 9_413_066),
        ("vgg16", COLOUR, 10, 14_724_042),
        ("vgg19", COLOUR, 10, 20_035_018),
        ("resnet20", COLOUR, 10, 272_474),
        ("resnet32", COLOUR, 10, 466_906),
        ("resnet56", COLOUR, 10, 855_770),
        ("wrn_16_4", COLOUR, 10, 2_748_890),
        ("wrn_28_10", COLOUR, 10, 36_479_194),
        ("wrn_28_10", COLOUR, 100, 36_536_884),
        ("conv2", COLOUR, 10, 4_301_642),
        ("conv4", COLOUR, 10, 2_425_930),
        ("conv6", COLOUR, 10, 2_262_602),
        ("conv4_16", GREY, 10, 16 * 10 + 16 * 145 + 32 * 145 + 32 * 289 + 64 * 1569 + 64 * 65 + 10 * 65),
        ("convnet4", COLOUR, 10, 32 * 76 + 64 * 801 + 1024 * 4097 + 10 * 1025),
        ("convnet4_8", GREY, 10, 8 * 26 + 16 * 201 + 256 * 785 + 10 * 257),
        (
            "convnet8",
            COLOUR,
            10,
            48 * 76 + 64 * (433 + 577) + 128 * (577 + 1153 + 1153) + 512 * 2049 + 2 * (2 * 64 + 3 * 128 + 512) + 5130,
        ),
        ("mlp", GREY, 10, 785 * 7 + 8 * 5 + 6 * 10),
        ("wide_resnet", COLOUR, 10, 77_850),
    ],
)
def test_parameter_counts_and_output_shapes(name: str, shape: Shape, classes: int, expected: int) -> None:
    with torch.device("meta"):
        net = build(name, shape=shape, classes=classes, **OPTIONS.get(name, {}))
        assert net(torch.empty(2, *shape)).shape == (2, classes)
    assert parameters(net) == expected


@pytest.mark.parametrize("name", list(MODELS))
def test_the_defaults_are_the_papers_sets(name: str) -> None:
    defaults = {key: value.default for key, value in inspect.signature(MODELS[name]).parameters.items()}
    assert defaults["shape"] == (GREY if name in ("mlp", "lenet_300_100", "lenet5_caffe") else COLOUR)
    assert defaults["classes"] == 10


@pytest.mark.parametrize(("name", "shape"), list(SMALL.items()))
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_forward_and_export(name: str, shape: Shape, training: bool) -> None:
    torch.manual_seed(0)
    net = build(name, shape=shape, classes=10, **OPTIONS.get(name, {})).train(training)
    x = torch.randn(3, *shape)
    exported = torch.export.export(net, (x,), strict=False).module()
    with torch.no_grad():
        torch.manual_seed(1)
        expected = net(x)
        torch.manual_seed(1)
        got = exported(x)
    assert expected.shape == (3, 10)
    assert expected.isfinite().all()
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("name", "shape"), list(SMALL.items()))
def test_the_seed_decides_the_weights(name: str, shape: Shape) -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return build(name, shape=shape, classes=10, **OPTIONS.get(name, {})).state_dict()

    a, b, c = weights(1), weights(1), weights(2)
    assert all(torch.equal(a[key], b[key]) for key in a)
    drawn = [key for key in a if key.endswith("weight") and a[key].ndim > 1]
    assert drawn
    assert not any(torch.equal(a[key], c[key]) for key in drawn)


@pytest.mark.parametrize(("name", "shape"), list(SMALL.items()))
def test_initialisation(name: str, shape: Shape) -> None:
    torch.manual_seed(0)
    net = build(name, shape=shape, classes=10, **OPTIONS.get(name, {}))
    for path, module in net.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            spread = 6 * math.sqrt(2 / fan_in / module.weight.numel())
            assert abs(module.weight.mean()) < spread, path
            assert abs(module.weight.std() * math.sqrt(fan_in / 2) - 1) < 6 / math.sqrt(2 * module.weight.numel()), path
            assert module.bias is None or not module.bias.any(), path
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all(), path
            assert not module.bias.any(), path


@pytest.mark.parametrize("name", list(SMALL))
def test_every_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    net = build(name, shape=SMALL[name], classes=10, **OPTIONS.get(name, {}))
    loss = F.cross_entropy(net(torch.randn(4, *SMALL[name])), torch.arange(4))
    assert all(gradient.any() for gradient in torch.autograd.grad(loss, list(net.parameters())))


def test_names_are_readable() -> None:
    assert [name for name, m in lenet_300_100().named_children() if list(m.parameters())] == ["fc1", "fc2", "fc3"]
    names = [name for name, m in lenet5_caffe().named_children() if list(m.parameters())]
    assert names == ["conv1", "conv2", "fc1", "fc2"]
    for net, expected in (
        (vgg11(), {"conv1.weight", "bn8.bias", "conv8.weight", "fc.bias"}),
        (resnet20(), {"conv1.weight", "stage1.0.conv1.weight", "stage2.0.shortcut.conv.weight", "stage3.2.bn2.bias"}),
        (wide_resnet(10, 1), {"conv1.weight", "stage3.0.conv2.weight", "stage2.0.shortcut.weight", "bn1.weight"}),
    ):
        assert expected <= {name for name, _ in net.named_parameters()}


def test_lenet5_pools_before_relu_without_changing_the_function() -> None:
    net = lenet5_caffe().eval()
    layer: dict[str, nn.Module] = dict(net.named_children())
    x = torch.randn(2, *GREY)
    y = F.max_pool2d(F.relu(layer["conv1"](x)), 2)
    y = F.max_pool2d(F.relu(layer["conv2"](y)), 2).flatten(1)
    assert y.shape == (2, 800)
    torch.testing.assert_close(net(x), layer["fc2"](F.relu(layer["fc1"](y))))


def test_residual_blocks_compute_their_formula() -> None:
    torch.manual_seed(0)
    block = resnet20().eval().get_submodule("stage2.0")
    x = torch.randn(2, 16, 8, 8)
    y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))  # type: ignore[operator]
    expected = F.relu(y + block.shortcut.bn(block.shortcut.conv(x)))  # type: ignore[operator, union-attr]
    torch.testing.assert_close(block(x), expected)
    assert expected.shape == (2, 32, 4, 4)

    wide = wide_resnet(10, 2).eval().get_submodule("stage2.0")
    x = torch.randn(2, 32, 8, 8)
    a = F.relu(wide.bn1(x))  # type: ignore[operator]
    expected = wide.conv2(F.relu(wide.bn2(wide.conv1(a)))) + wide.shortcut(a)  # type: ignore[operator]
    torch.testing.assert_close(wide(x), expected)
    plain = wrn_16_4().eval().get_submodule("stage1.1")
    x = torch.randn(2, 64, 8, 8)
    a = F.relu(plain.bn1(x))  # type: ignore[operator]
    torch.testing.assert_close(plain(x), plain.conv2(F.relu(plain.bn2(plain.conv1(a)))) + x)  # type: ignore[operator]


@pytest.mark.parametrize("net", [resnet20(), wide_resnet(16, 1)], ids=["resnet", "wide"])
def test_the_stride_is_on_the_first_convolution_of_a_stage(net: nn.Module) -> None:
    strides = {name: m.stride[0] for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)}
    assert set(strides.values()) == {2}
    halving = {name for name in strides if "shortcut" not in name}
    assert halving == {"stage2.0.conv1", "stage3.0.conv1"}
    assert len(strides) == 4


def test_dropout_is_there_only_when_asked() -> None:
    def drops(net: nn.Module) -> list[float]:
        return [m.p for m in net.modules() if isinstance(m, nn.Dropout)]

    assert drops(wide_resnet(16, 1)) == []
    with torch.device("meta"):
        assert drops(build("wrn_28_10", shape=COLOUR, classes=10, dropout=0.3)) == [0.3] * 12
        assert drops(build("wrn_16_4", shape=COLOUR, classes=10, dropout=0.1)) == [0.1] * 6


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", (2, 3, 5)), ("lenet_300_100", (1, 8, 8)), ("lenet5_caffe", (3, 16, 17)), ("vgg11", (1, 32, 70)),
        ("resnet20", (1, 8, 8)), ("wide_resnet", (1, 9, 5)), ("lenet5_caffe", (3, 32, 32)),
        ("conv2", (1, 5, 4)), ("conv6_16", (2, 9, 17)),
    ],
)  # fmt: skip
def test_other_shapes_and_classes(name: str, shape: Shape) -> None:
    net = build(name, shape=shape, classes=3, **OPTIONS.get(name, {}))
    assert net(torch.randn(2, *shape)).shape == (2, 3)


def test_an_mlp_without_hidden_layers_is_linear() -> None:
    net = mlp((), shape=(1, 2, 2), classes=3)
    assert parameters(net) == 15
    assert list(dict(net.named_children())) == ["flatten", "fc1"]


def test_too_small_images_are_refused() -> None:
    for shape in ((1, 8, 8), (1, 15, 40)):
        with pytest.raises(ValueError, match=f"at least 16x16, not {shape[1]}x{shape[2]}"):
            lenet5_caffe(shape=shape)
    with pytest.raises(ValueError, match=r"vgg11 .* at least 32x32, not 32x31"):
        vgg11(shape=(3, 32, 31))


@pytest.mark.parametrize("name", list(MODELS))
def test_impossible_shapes_and_classes_are_refused(name: str) -> None:
    options = OPTIONS.get(name, {})
    for shape in ((1, 0, 32), (32, 32), (1, 32, 32, 1), (1, 32.0, 32), (True, 32, 32)):
        with pytest.raises(ValueError, match="shape is"):
            build(name, shape=shape, classes=10, **options)  # type: ignore[arg-type]
    for classes in (0, 1.5, True):
        with pytest.raises(ValueError, match="classes is"):
            build(name, shape=COLOUR, classes=classes, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("lenet", {}, r"no model 'lenet'; there are mlp, lenet_300_100, .*wrn_28_10"),
        ("vgg16", {"depth": 3}, r"cannot build vgg16\(.*unexpected keyword argument 'depth'"),
        ("mlp", {}, "missing a required argument: 'widths'"),
        ("mlp", {"widths": (3, 0)}, "widths are"),
        ("mlp", {"widths": (3.0,)}, "widths are"),
        ("wide_resnet", {"depth": 12, "width": 1}, "depth"),
        ("wide_resnet", {"depth": 4, "width": 1}, "depth"),
        ("wide_resnet", {"depth": 10.0, "width": 1}, "depth"),
        ("wide_resnet", {"depth": 10, "width": 0}, "width factor"),
        ("wide_resnet", {"depth": 10, "width": 1, "dropout": 1.0}, "dropout"),
        ("wrn_16_4", {"dropout": float("nan")}, "dropout"),
    ],
)
def test_build_explains_what_it_refuses(name: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build(name, shape=COLOUR, classes=10, **options)


def test_the_networks_of_the_hard_threshold_papers() -> None:
    net = build("convnet8", shape=COLOUR, classes=10)
    order = [name for name, _ in net.named_children()]
    assert order[:3] == ["conv1", "pool1", "act1"]  # no norm, and the activation after the pool
    assert order[6:10] == ["conv3", "norm3", "pool3", "act3"]
    assert order[order.index("dropout") + 1] == "conv7"
    assert {m.eps for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-4}
    shapes = []
    x = torch.zeros(1, *COLOUR)
    for name, module in net.eval().named_children():
        x = module(x)
        if name.startswith("conv"):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [
        (48, 32, 32), (64, 16, 16), (64, 16, 16), (128, 6, 6), (128, 6, 6), (128, 4, 4), (512, 1, 1),
    ]  # fmt: skip
    for name in ("convnet4", "convnet4_8", "convnet8"):
        with torch.device("meta"):
            other = build(name, shape=COLOUR, classes=10, activation=nn.Tanh)
        assert sum(isinstance(m, nn.Tanh) for m in other.modules()) == (7 if name == "convnet8" else 3)
        assert not any(isinstance(m, nn.ReLU) for m in other.modules())
    assert sum(isinstance(m, nn.Tanh) for m in mlp((7, 5), activation=nn.Tanh).modules()) == 2
    with pytest.raises(ValueError, match="at least 32x32"):
        build("convnet8", shape=GREY, classes=10)
