"""The README's example runs, and the documents are in step with results/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evidence.docs import regenerate

ROOT = Path(__file__).resolve().parents[1]


def test_readme_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.S)[0]
    assert len(code.strip().splitlines()) <= 25
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "small.safetensors").stat().st_size < 60_000
    small, net = names["small"], names["net"]
    assert sum(p.numel() for p in small.parameters()) <= 0.2 * 50_610  # type: ignore[attr-defined]
    x = names["data"].test.x  # type: ignore[attr-defined]
    assert float((small(x) - net.eval()(x)).detach().abs().max()) < 1e-4  # type: ignore[operator,attr-defined]
    assert "total" in capsys.readouterr().out


def test_documents_are_in_step_with_the_results() -> None:
    assert regenerate(ROOT, check=True) == [], "run: python -m evidence docs"


def test_nothing_speaks_of_a_machine() -> None:
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("results/*.json"),
        *ROOT.glob("src/**/*.py"),
    ]:
        assert not re.search(r"/(work|home|root|tmp|farm)/", path.read_text(encoding="utf-8")), path
