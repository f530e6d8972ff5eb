"""Networks that cannot be captured: the reason is true, it says what to do, and nothing else is printed."""

from __future__ import annotations

import copy
import logging
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import paring as pr
from paring.analysis.capture import capture
from paring.analysis.quiet import quiet
from paring.core import ParingWarning, warn
from paring.core.fresh import let_go

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)


class Branches(Base):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y * 2 if y.sum() > 3 else y


class BranchesInTraining(Base):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        if self.training and not torch.isfinite(y).all():
            y = y.clamp(-1, 1)
        return y


class BySize(Base):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x[x[:, 0] > 0])
        return y if len(y) > 1 else y * 2


@dataclass
class Config:
    use_cache: bool = True


class Cache:
    """No tensor."""


class Decoder(Base):
    def __init__(self) -> None:
        super().__init__()
        self.config = Config()

    def forward(self, x: Tensor) -> Any:
        return (self.fc(x), Cache()) if self.config.use_cache else (self.fc(x),)


class Keeps(Base):
    def forward(self, x: Tensor) -> Any:
        return self.fc(x), Cache()


class Two(Base):
    def forward(self, x: Tensor, scale: Tensor, *, shift: float = 0.0) -> Tensor:
        y: Tensor = self.fc(x) * scale + shift
        return y


class Untraceable(Base):
    """Runs, but asks for something that a fake tensor does not have."""

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is not Tensor:
            raise TypeError(f"no plain tensor: {type(x).__name__}")
        y: Tensor = self.fc(x)
        return y


def refusal(net: nn.Module, example: Any) -> str:
    with pytest.raises(pr.CaptureError) as caught:
        capture(net, example)
    return str(caught.value)


@pytest.mark.parametrize("kind", [Branches, BySize])
def test_branches_on_values(kind: type[nn.Module]) -> None:
    message = refusal(kind(), X)
    assert "goes by the values of tensors" in message
    assert "test_capture.py, line" in message
    assert message.endswith("Use torch.where, or move the branch out of the network")
    assert "example" not in message


def test_branches_in_train_mode_alone() -> None:
    net = BranchesInTraining()
    net.fc.eval()
    message = refusal(net, X)
    assert "It does so in train mode alone: call net.eval() first" in message
    assert net.training
    assert not net.fc.training
    capture(net.eval(), X)


@pytest.mark.parametrize("net", [Decoder(), nn.Sequential(Decoder())])
def test_a_network_is_looked_at_without_its_cache(net: nn.Module) -> None:
    """Parts may have a configuration of their own, as the decoder of T5."""
    decoder = net if isinstance(net, Decoder) else net[0]  # type: ignore[index]
    assert len(list(capture(net, X).program.graph.output_node().args[0])) == 1  # type: ignore[arg-type]
    assert decoder.config.use_cache
    small, _ = pr.compact(net, X)
    assert all(part.config.use_cache for part in small.modules() if isinstance(part, Decoder))
    assert decoder.config.use_cache
    decoder.config.use_cache = False
    small, _ = pr.compact(net, X)
    assert not any(part.config.use_cache for part in small.modules() if isinstance(part, Decoder))


def test_a_cache_that_no_configuration_asks_for() -> None:
    assert "its forward returns a Cache" in (message := refusal(Keeps(), X))
    assert "Return the tensors alone" in message


def test_whisper() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
    config = transformers.WhisperConfig(
        vocab_size=20, d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8, num_mel_bins=4, max_source_positions=6, **sizes,
        max_target_positions=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    net = transformers.WhisperModel(config).eval()
    capture(net, {"input_features": torch.randn(2, 4, 12), "decoder_input_ids": torch.randint(3, 20, (2, 3))})
    assert net.config.use_cache


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (
            X,
            r"takes \(x: .*scale: .*shift: .*\), but the example gives 1 positional argument: missing a required .*'scale'",
        ),
        ((X, X, X), "3 positional arguments: too many positional arguments"),
        ({"x": X}, "gives x: missing a required argument: 'scale'"),
        ({"x": X, "scale": X, "mask": X}, "gives x, scale, mask: got an unexpected keyword argument 'mask'"),
        ((X, X[:, :1] * 1.5j, "x"), "too many positional"),
        ((X, torch.ones(3, 3)), "the network itself fails on this example with RuntimeError: The size of tensor a"),
        ((X[:, :2], X[:, :2]), "the network itself fails on this example with RuntimeError: mat1 and mat2"),
        ((X, np.ones(2)), r"the example holds a numpy.ndarray, .*torch.from_numpy"),
        ((X[:0], X[:0]), r"the example is empty \(shapes \(0, 3\), \(0, 3\)\)"),
    ],
)
def test_wrong_examples(example: Any, reason: str) -> None:
    with pytest.raises(pr.CaptureError, match=reason):
        capture(Two(), example)


def test_what_runs_is_not_blamed_on_the_example() -> None:
    message = refusal(Untraceable(), X)
    assert "The network runs on this example, but torch.export cannot trace it" in message


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("call", [
    lambda net, x: pr.attach(net, pr.L0(price=1e-3, at="units"), example=x),
    pr.compact,
    pr.groups,
    pr.report,
])  # fmt: skip
def test_nothing_to_look_at(call: Any) -> None:
    with pytest.raises(pr.CaptureError, match="the example is empty"):
        call(nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2)), X[:0])
    with pytest.raises(pr.CaptureError, match=r"'1.weight' of Sequential has shape \(0, 6\): a layer without units"):
        call(nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 0)), X)
    with pytest.raises(pr.CaptureError, match=r"'1.weight' of Sequential has no shape yet; run the network"):
        call(nn.Sequential(nn.Linear(3, 6), nn.LazyLinear(2)), X)
    with pytest.raises(TypeError, match=r"not a numpy.ndarray; torch.from_numpy"):
        call(nn.Linear(3, 2), X.numpy())


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = [[*handler.filters] for handler in logging.getLogger("torch").handlers]
    monkeypatch.delenv("PARING_DEBUG", raising=False)
    refusal(Branches(), X)
    assert capfd.readouterr() == ("", "")
    assert [handler.filters for handler in logging.getLogger("torch").handlers] == handlers
    monkeypatch.setenv("PARING_DEBUG", "1")
    refusal(Branches(), X)
    assert "torch.ops.aten.linear" in capfd.readouterr().err


def test_quiet_hears_the_others(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads' logs, our own warnings and what the user's code prints go on."""
    monkeypatch.delenv("PARING_DEBUG", raising=False)
    logger = logging.getLogger("torch.paring_test")
    heard: list[str] = []

    class Hears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    handler = Hears()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with quiet():
                logger.warning("here")
                thread = threading.Thread(target=logger.warning, args=("there",))
                thread.start()
                thread.join()
                warnings.warn("not ours", stacklevel=1)
                warn_from_paring()
                import sys

                print("the user's own", file=sys.stderr)
    finally:
        logger.removeHandler(handler)
    assert heard == ["there"]
    assert [w.category for w in caught] == [ParingWarning]
    assert capsys.readouterr().err == "the user's own\n"


def warn_from_paring() -> None:
    """As if a file of paring called `warn`."""
    exec(compile("warn('ours')", "paring/any.py", "exec"), {"warn": warn, "__name__": "paring.any"})


class Plain(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.skipif(not hasattr(torch.fx.config, "do_not_emit_stack_traces"), reason="this torch always keeps them")
@pytest.mark.parametrize("before", [False, True])
def test_lines_behind_operations_are_not_kept_and_whoever_wants_them_has_them_again(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.fx.config, "do_not_emit_stack_traces", before)
    net, x = Plain(), torch.zeros(2, 3)
    assert not any(node.stack_trace for node in capture(net, x).nodes)
    assert torch.fx.config.do_not_emit_stack_traces == before
    with pytest.raises(pr.CaptureError):
        capture(net, torch.zeros(2, 5))
    assert torch.fx.config.do_not_emit_stack_traces == before
    if not before:
        assert any(node.stack_trace for node in torch.export.export(net, (x,), strict=False).graph.nodes)


class Remembers(nn.Module):
    """Keeps what it saw, as maps of attention are kept: in an attribute, in a new list, and in one that is there already."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.all, self.last = nn.Linear(3, 2), list[Tensor](), torch.zeros(1)
        self.named: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.a(x)
        self.new = [self.last]
        self.all.append(self.last)
        self.named["last"] = self.last
        return self.last.relu()


@pytest.mark.skipif(
    torch.__version__ < (2, 8), reason="torch 2.7 captures no network that keeps tensors in new attributes"
)
def test_a_capture_leaves_no_tensors_without_values_in_attributes() -> None:
    net, x = Remembers(), torch.randn(2, 3)
    every, last = net.all, net.last
    capture(net, x)
    assert net.all is every
    assert (net.all, net.named) == ([], {})
    assert net.last is last
    assert not hasattr(net, "new")
    net(x)
    assert torch.equal(copy.deepcopy(let_go(net)).new[0], net.last)
