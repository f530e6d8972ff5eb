"""Commands over hostile network files: a message on one line and an exit status, and no control characters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import paring as pr
from paring.cli.fuzz.commands_format import Commands
from paring.cli.main import main
from paring.testing.fuzz import campaign, sown

ODD = "a\x1b[31m\n\u202e"


def test_many_changes() -> None:
    for counts in (campaign(Commands(), cases=60), sown(Commands(), every=409)):
        assert not counts.failing
        assert counts.outcomes["refused"] > 20


def test_names_are_shown_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pr.pack({ODD: torch.ones(3), "\udc80": torch.ones(2), "[red]": torch.ones(2)}, tmp_path / "a.pare")
    assert main(["info", str(tmp_path / "a.pare"), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert r"a\x1b[31m\n\u202e" in shown
    assert r"\udc80" in shown
    assert "[red]" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("name", ["__metadata__", "\udc80"])
def test_names_that_safetensors_cannot_hold_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pr.pack({name: torch.ones(3)}, tmp_path / "a.pare")
    assert torch.equal(pr.unpack(None, tmp_path / "a.pare")[name], torch.ones(3))
    assert main(["unpack", str(tmp_path / "a.pare"), "--out", str(tmp_path / "b"), "--quiet"]) == 1
    assert f"cannot hold a tensor of the name {name!r}" in capsys.readouterr().err
    net = nn.Module()
    net.register_buffer(name, torch.ones(3))
    with pytest.raises(pr.FileError, match="cannot hold a tensor of the name"):
        pr.save(net, tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pare"]


def test_a_changed_network_is_not_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    pr.save(nn.Linear(3, 3), path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert main(["pack", str(path), "--out", str(tmp_path / "a.pare"), "--quiet"]) == 1
    assert "its content does not match its digest" in capsys.readouterr().err
