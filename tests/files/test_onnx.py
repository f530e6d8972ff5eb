"""ONNX files compute what the network computes, at any batch size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paring.files import OnnxError, to_onnx
from paring.removal import compact
from tests.removal.streams import kill, made
from tests.removal.transformers_zoo import GPT

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")


def run(path: Path, *inputs: Tensor) -> Tensor:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return torch.from_numpy(session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))[0])


@pytest.mark.filterwarnings("ignore")
def test_shrunk_networks_of_both_forms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))
    gpt = GPT().eval()
    with torch.no_grad():
        conv[0].weight[:2], conv[0].bias[:2] = 0, 0
        gpt.blocks[0].attention.qkv.weight[32:36] = 0
    image, words = torch.randn(4, 1, 8, 8), torch.randint(0, 11, (2, 6))
    for net, x in ((conv, image), (gpt, words)):
        small, _ = compact(net.eval(), x, verify=False, form="module" if net is conv else "graph")
        to_onnx(small.train(), x, tmp_path / "net.onnx")
        assert small.training
        small.eval()
        for batch in (x, torch.cat([x, x, x])):
            assert torch.allclose(run(tmp_path / "net.onnx", batch), net(batch), atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["rms", "plain", "layer"])
def test_networks_with_a_narrower_stream(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    net, words = made(kind, 14, 0.01)
    kill(net, torch.tensor([1, 2, 7]))
    small, _ = compact(net.float(), words)
    assert small.words.embedding_dim == 11
    to_onnx(small, words, tmp_path / "net.onnx")
    for batch in (words, torch.cat([words, words, words])):
        assert torch.allclose(run(tmp_path / "net.onnx", batch), net(batch), atol=1e-4)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"paring\[onnx\]"):
        to_onnx(nn.Linear(2, 2), torch.randn(2, 2), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_exported_leaves_the_old_file(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if bool(x.sum() > 0) else x

    (tmp_path / "net.onnx").write_text("old")
    with pytest.raises(OnnxError, match=r"Branches cannot be exported|it was not kept"):
        to_onnx(Branches(), torch.randn(2, 2), tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["module", "graph"])
def test_networks_that_take_any_number_of_inputs(form: str, tmp_path: Path) -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, first: Tensor, *others: Tensor) -> Tensor:
            return self.out(torch.relu(self.into(torch.cat([first, *others], 1))))

    torch.manual_seed(0)
    net, inputs = Many().eval(), (torch.randn(4, 2), torch.randn(4, 1), torch.randn(4, 2))
    with torch.no_grad():
        net.into.weight[:3], net.into.bias[:3] = 0, 0
    small, _ = compact(net, inputs, form=form)  # type: ignore[arg-type]
    assert small.into.out_features == 5
    assert torch.allclose(small(*inputs), net(*inputs), atol=1e-5)
    to_onnx(small, inputs, tmp_path / "net.onnx")
    assert torch.allclose(torch.export.export(small, inputs).module()(*inputs), net(*inputs), atol=1e-5)


def test_the_reason_of_a_failed_export_is_that_of_the_network(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no such thing")

    with pytest.raises(OnnxError, match="RuntimeError: no such thing"):
        to_onnx(Broken(), torch.randn(2, 2), tmp_path / "net.onnx")


class Words(nn.Module):
    """An embedding with positions for 16 words, a causal sum, and a mask as long as the text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position, self.out = nn.Embedding(11, 8), nn.Embedding(16, 8), nn.Linear(8, 3)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(words) + self.position.weight[: words.shape[1]]
        return self.out((x * mask[..., None]).cumsum(1))


@pytest.mark.filterwarnings("ignore")
def test_lengths_are_free_where_the_network_takes_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Words().eval()
    words, mask = torch.randint(11, (2, 6)), torch.ones(2, 6)
    sizes = to_onnx(net, (words, mask), tmp_path / "net.onnx")
    assert list(sizes.values()) == [("batch", "length")] * 2
    for batch, length in ((1, 4), (3, 16), (2, 9)):
        other = torch.randint(11, (batch, length)), torch.rand(batch, length)
        assert torch.allclose(run(tmp_path / "net.onnx", *other), net(*other), atol=1e-5)
    sizes = to_onnx(net, (words, mask), tmp_path / "net.onnx", dynamic=False)
    assert list(sizes.values()) == [(2, 6), (2, 6)]
    sizes = to_onnx(net, (words, mask), tmp_path / "net.onnx", dynamic={"words": [1], "mask": [1]})
    assert list(sizes.values()) == [(2, "length")] * 2


@pytest.mark.filterwarnings("ignore")
def test_heights_and_widths_are_free_and_what_is_fixed_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    free = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    image = torch.randn(2, 3, 8, 8)
    (shape,) = to_onnx(free, image, tmp_path / "net.onnx").values()
    assert shape == ("batch", 3, "height", "width")
    other = torch.randn(3, 3, 10, 17)
    assert torch.allclose(run(tmp_path / "net.onnx", other), free(other), atol=1e-5)
    (shape,) = to_onnx(fixed, image, tmp_path / "net.onnx").values()
    assert shape == ("batch", 3, 8, 8)


@pytest.mark.parametrize(
    ("dynamic", "said"),
    [
        ({"y": [0]}, "no input 'y'; there are input"),
        ({"input": [2]}, "no dimension 2"),
        ({"input": 0}, r"name dimensions in a list, such as \[0, 1\], and has 0"),
        ({"input": ["batch"]}, "name dimensions in a list"),
    ],
)
def test_dimensions_that_are_not_there_are_refused(dynamic: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        to_onnx(nn.Linear(2, 2), torch.randn(2, 2), tmp_path / "net.onnx", dynamic=dynamic)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
def test_a_size_that_the_network_does_not_take_cannot_be_asked_for(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(OnnxError, match=r"cannot be exported: \w+: .*[^:]$"):
        to_onnx(net, torch.randn(2, 3, 4), tmp_path / "net.onnx", dynamic={"input": [1]})


class Fields(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = self.a(batch["one"]) - self.b(batch["other"])
        return found


@pytest.mark.filterwarnings("ignore")
def test_an_argument_that_is_a_mapping(tmp_path: Path) -> None:
    net, batch = Fields().eval(), {"one": torch.randn(2, 3), "other": torch.randn(2, 4)}
    found = to_onnx(net, (batch,), tmp_path / "net.onnx")
    assert list(found.values()) == [("batch", 3), ("batch", 4)]
    assert torch.allclose(run(tmp_path / "net.onnx", *batch.values()), net(batch), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_half_precision_differs_by_its_own_rounding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 4)).half(), torch.randn(2, 10).half()
    to_onnx(net, x, tmp_path / "net.onnx", dynamic=False)
    assert torch.allclose(run(tmp_path / "net.onnx", x), net(x), atol=5e-3)
    with pytest.raises(OnnxError, match=r"refuses the file .*export net.float\(\)"):
        to_onnx(net.bfloat16(), x.bfloat16(), tmp_path / "net.onnx", dynamic=False)


@pytest.mark.filterwarnings("ignore")
def test_noise_in_eval_mode_is_named(tmp_path: Path) -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    with pytest.raises(OnnxError, match="this Noisy draws random numbers in eval mode"):
        to_onnx(Noisy(3, 2), torch.randn(2, 3), tmp_path / "net.onnx", dynamic=False)
    assert not list(tmp_path.iterdir())
