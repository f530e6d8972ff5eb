"""Missing extras skip a test, and nothing else does."""

from __future__ import annotations

import pytest

from tests import missing


def failed(module: str, told: bool = True) -> Exception:
    try:
        try:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        except ImportError as error:
            raise ImportError("pip install 'paring[codec]'") from (error if told else None)
    except ImportError as error:
        return error


def test_only_an_extra_that_is_not_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not missing.missing_extra(failed("pytest"))
    assert not missing.missing_extra(AssertionError("wrong"))
    assert not missing.missing_extra(failed("no_such_module_at_all")), "a module of ours that was misspelt"
    monkeypatch.setattr(missing, "lacks", lambda module: True)
    reason = missing.missing_extra(failed("constriction.stream"))
    assert reason == "needs constriction (extra 'codec'), which is not installed"
    assert missing.missing_extra(failed("constriction", told=False)) == reason
    monkeypatch.undo()
    monkeypatch.setattr(missing, "EXTRAS", {"torch": "core"})
    assert not missing.missing_extra(failed("torch")), "what is installed and fails is a failure"
    assert missing.lacks("no_such_module_at_all")
