"""The code of README, start page and guides runs; the documents are in step with results/ and with the public names."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from evidence.docs import regenerate

ROOT = Path(__file__).resolve().parents[1]
ROOMS = "analysis bits compression core cost data deployment files gates gates.relax hard methods models pruning removal run select testing train"


def test_readme_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first, code = re.findall(r"```python\n(.*?)```", text, re.S)
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
    assert len(first.strip().splitlines()) <= 25
    exec(compile(first, "README.md", "exec"), names)
    assert names["pruned"].shares["macs"] <= 0.5  # type: ignore[attr-defined]
    x, y = names["data"].validation.x, names["data"].validation.y  # type: ignore[attr-defined]
    right = [float((one(x).argmax(1) == y).float().mean()) for one in (names["net"], names["small"])]  # type: ignore[operator]
    assert right[1] > right[0] - 0.03
    assert "macs" in capsys.readouterr().out


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


def test_the_reference_has_every_public_name() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/reference").glob("*.md"))
    lines = re.findall(r"^::: paring\.([\w.]+)$", pages, re.MULTILINE)
    inside = set(re.findall(r"\b(\w+)\.\1\n", "\n".join([*lines, ""])))  # functions that are called as their module
    for room in ("", *ROOMS.split()):
        public = set(import_module(f"paring.{room}" if room else "paring").__all__)
        missing = {
            name for name in public - inside if not {f"{room}.{name}".lstrip("."), f"methods.{name}"} & set(lines)
        }
        assert missing - {"select"} == set(), f"paring.{room}: add them to docs/reference"
    for name in lines:
        module, _, last = name.rpartition(".")
        assert hasattr(import_module(f"paring.{module}" if module else "paring"), last), f"docs/reference shows {name}"


RUNNABLE = [ROOT / "docs/index.md", *sorted((ROOT / "docs/guides").glob("*.md"))]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_the_code_of_the_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it, in order, in one namespace and an empty folder; a warning is an error."""
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        before = "\n" * (text[: block.start()].count("\n") + 1)
        exec(compile(before + block[1], str(page), "exec"), names)
    assert "small" not in names or capsys.readouterr().out
