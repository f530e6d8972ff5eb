"""Docs: blocks are filled from results, stale ones are found, what cannot be filled is refused with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evidence.docs import LONG, DocsError, regenerate
from evidence.views.views import FIGURES, VIEWS, find, spread
from paring.cli.human import exact, percent, seconds
from paring.cli.results import Results, ResultsError, Stat


def _measured(run: str, **keys: Any) -> dict[str, Any]:
    return {"run": run, "source": "measured", "model": "lenet5_caffe", "data": "mnist", **keys}


RUNS = [
    {"run": "q", "source": "quoted", "model": "lenet5_caffe", "data": "mnist", "method": "GD", "error": 1.1}
    | {"architecture": "7-13-208-16", "parameters": 6000, "macs": 250_000},
    *(
        _measured(
            f"r{seed}", method="L0", seed=seed, price=0.1, epochs=200, error=0.9 + 0.1 * seed, parameters=6000 + seed
        )
        | {"macs": 300_000, "expected_macs": 310_000.0, "train_seconds": 30.0, "architecture": f"7-13-20{seed}-16"}
        for seed in range(3)
    ),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    for name in ("plain", "louizos2018-mnist"):
        Results(name, f"python -m evidence table {name}", RUNS, date="2026-01-02").save(
            tmp_path / "results" / f"{name}.json"
        )
    return tmp_path


def _write(root: Path, *markers: str, name: str = "README.md") -> Path:
    path = root / name
    blocks = "\n".join(f"before\n<!-- paring:{marker} -->\nold\n<!-- /paring -->\nafter" for marker in markers)
    path.write_text(f"# Title\n\n{blocks}\n", encoding="utf-8")
    return path


def test_a_table_is_filled_and_then_in_step(root: Path) -> None:
    path = _write(root, "table plain")
    before = path.read_text(encoding="utf-8")
    assert regenerate(root, check=True) == [path]
    assert path.read_text(encoding="utf-8") == before, "check writes nothing"
    assert regenerate(root) == [path]
    text = path.read_text(encoding="utf-8")
    assert "old" not in text.splitlines()
    assert text.count("before") == text.count("after") == 1
    header, _, quoted, ours = (line for line in text.splitlines() if line.startswith("|"))
    assert header.startswith("| network | data | method |")
    assert "| GD |" in quoted
    assert quoted.endswith("| quoted |")
    assert "| 1.00 ± 0.10 |" in ours
    assert "| 6,001 ± 1 |" in ours
    assert "| 300,000 |" in ours
    assert "7-13-200-16<br>7-13-201-16<br>7-13-202-16" in ours
    assert ours.endswith("| 3 |")
    assert "*Made by `python -m evidence table plain`, 2026-01-02, " in text
    assert regenerate(root) == []
    assert regenerate(root, check=True) == []


def test_changed_results_make_the_docs_stale(root: Path) -> None:
    path = _write(root, "table plain", name="docs/page.md")
    regenerate(root)
    Results("plain", "python -m evidence table plain", RUNS[:2], date="2026-01-02").save(
        root / "results" / "plain.json"
    )
    assert regenerate(root, check=True) == [path]


def test_an_edited_number_is_stale(root: Path) -> None:
    path = _write(root, "table plain")
    regenerate(root)
    path.write_text(path.read_text(encoding="utf-8").replace("1.00 ± 0.10", "0.10 ± 0.01"), encoding="utf-8")
    assert regenerate(root, check=True) == [path]
    regenerate(root)
    assert "1.00 ± 0.10" in path.read_text(encoding="utf-8")


def test_a_figure_is_drawn_linked_and_checked(root: Path) -> None:
    readme = _write(root, "figure plain", "figure plain lenet5_caffe")
    page = _write(root, "figure plain", name="docs/page.md")
    svg, other = root / "docs/figures/plain.svg", root / "docs/figures/plain-lenet5_caffe.svg"
    assert set(regenerate(root, check=True)) == {readme, page, svg, other}
    assert not svg.exists()
    regenerate(root)
    assert "![Error against size](docs/figures/plain.svg)" in readme.read_text(encoding="utf-8")
    assert "](figures/plain.svg)" in page.read_text(encoding="utf-8")
    assert regenerate(root, check=True) == []
    svg.write_text(svg.read_text(encoding="utf-8") + "<!-- edited -->", encoding="utf-8")
    other.unlink()
    assert set(regenerate(root, check=True)) == {svg, other}


def test_missing_results_say_so_and_how_to_make_them(root: Path) -> None:
    path = _write(root, "table absent", "table gates", "figure absent")
    regenerate(root)
    text = path.read_text(encoding="utf-8")
    assert text.count("Not measured yet") == 3
    assert "`python -m evidence table absent`" in text
    assert "`python -m evidence bench gates`" in text
    assert regenerate(root, check=True) == []


def test_a_figure_without_rows_says_so(root: Path) -> None:
    Results("louizos2018-figures", "c").save(root / "results" / "louizos2018-figures.json")
    path = _write(root, "figure louizos2018-figures 3a")
    regenerate(root)
    assert "has no rows for this figure" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<!-- paring:table plain -->\n", r"line 1: .* never closed"),
        (
            "<!-- paring:table plain -->\n<!-- paring:table plain -->\n<!-- /paring -->\n",
            r"line 2: the block of line 1",
        ),
        ("a\n<!-- /paring -->\n", r"line 2: .* closes nothing"),
        ("<!-- paring:chart plain -->\n<!-- /paring -->\n", r"line 1: .* is neither"),
        ("<!-- paring:table ../plain -->\n<!-- /paring -->\n", r"line 1: .* is neither"),
        ("<!-- paring:table plain nice -->\n<!-- /paring -->\n", r"line 1: 'plain' has no view 'nice'; it has .*rows"),
    ],
)
def test_a_block_that_cannot_be_filled_is_refused(root: Path, text: str, problem: str) -> None:
    (root / "README.md").write_text(text, encoding="utf-8")
    with pytest.raises(DocsError, match=r"README\.md, " + problem):
        regenerate(root)
    assert (root / "README.md").read_text(encoding="utf-8") == text


def test_indented_markers_are_text(root: Path) -> None:
    path = root / "README.md"
    path.write_text("    <!-- paring:table plain -->\n    <!-- /paring -->\nno end of line", encoding="utf-8")
    assert regenerate(root) == []


def test_damaged_results_stop_everything(root: Path) -> None:
    path = _write(root, "table plain")
    before = path.read_text(encoding="utf-8")
    (root / "results" / "plain.json").write_text("{", encoding="utf-8")
    with pytest.raises(ResultsError, match=r"plain\.json"):
        regenerate(root)
    assert path.read_text(encoding="utf-8") == before


def test_the_longest_beginning_of_the_name_wins() -> None:
    assert find(VIEWS, "louizos2018-mnist", "rows") is VIEWS["louizos2018-mnist", "rows"]
    assert find(VIEWS, "demo-seeds", "rows") is VIEWS["demo", "rows"]
    assert find(VIEWS, "anything", "rows") is VIEWS["", "rows"]


def test_the_papers_table_puts_quoted_rows_first_and_counts_flops(root: Path) -> None:
    rows = [*RUNS[1:], RUNS[0], {**RUNS[0], "run": "other", "model": "lenet_300_100"}]
    lines = VIEWS["louizos2018-mnist", "rows"](Results("louizos2018-mnist", "c", rows)).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["GD", "L0", "GD"]
    assert "| 620,000 | 600,000 | 30.0 s | 3 |" in lines[3]
    assert "LeNet-300-100" in lines[4]


def test_relaxations_are_one_line_each() -> None:
    rows = [
        _measured(f"{name}{seed}", method=name, seed=seed, error=1.0 + seed, gated_error=1.0, parameters=100, ratio=4.0)
        for name in ("hard concrete", "concrete")
        for seed in (0, 1)
    ]
    lines = VIEWS["louizos2018-relaxations", "rows"](Results("louizos2018-relaxations", "c", rows)).splitlines()
    assert lines[2] == "| hard concrete | 1.50 ± 0.71 | 1.00 | 100 | 4.0 | 2 |"
    assert len(lines) == 4


def test_demo_seeds_compare_dense_and_small() -> None:
    rows = [
        _measured(
            f"s{seed}",
            seed=seed,
            dense={"error": 2.0, "parameters": 1000},
            small={"error": 2.0 - seed, "parameters": 150},
        )
        for seed in (0, 1)
    ]
    lines = VIEWS["demo", "rows"](Results("demo-seeds", "c", rows)).splitlines()
    assert "| test error | 2.00 % | 1.50 ± 0.71 % | −0.50 ± 0.71 points |" in lines
    assert "| parameters | 1,000 | 150 | −85 % |" in lines
    assert lines[-1].startswith("| seeds | 2 | 2 |")


def test_a_bench_shows_median_and_spread() -> None:
    rows = [
        _measured(
            "a",
            setting="units | all",
            ratio=0.8,
            ratio_low=0.75,
            ratio_high=0.9,
            milliseconds=5.0,
            repeats=200,
            threads=1,
        ),
        *(_measured(f"b{i}", setting="weights", ratio=r, threads=1) for i, r in enumerate((0.5, 0.9, 0.6))),
    ]
    found = Results("speed", "c", rows)
    lines = VIEWS["", "bench"](found).splitlines()
    assert lines[2] == "| LeNet-5-Caffe | units \\| all | 5.00 ms | 0.80× | 0.75 to 0.90 | 200 | 1 |"
    assert lines[3] == "| LeNet-5-Caffe | weights | – | 0.60× | 0.50 to 0.90 | 3 | 1 |"
    assert (FIGURES["", "bench"](found) or "").startswith("<svg")


def test_a_bench_that_was_too_noisy_says_so() -> None:
    noisy = _measured("a", setting="units", ratio=None, ratio_low=0.4, ratio_high=2.0, repeats=9, threads=1)
    lines = VIEWS["", "bench"](Results("speed", "c", [noisy])).splitlines()
    assert lines[2] == "| LeNet-5-Caffe | units | too noisy to say | 0.40 to 2.00 | 9 | 1 |"
    assert FIGURES["", "bench"](Results("speed", "c", [noisy])) is None


def test_a_view_on_the_wrong_results_says_what_it_lacks() -> None:
    found = Results("plain", "c", RUNS)
    for wrong in (VIEWS["", "bench"], VIEWS["demo", "rows"], FIGURES["", "bench"]):
        with pytest.raises(ResultsError, match=r"'plain': this view needs '(setting|dense)'"):
            wrong(found)


def test_curves_of_a_figure_are_drawn_by_their_own_rows() -> None:
    rows = [
        {
            "run": f"{figure}{label}",
            "figure": figure,
            "label": label,
            "x": [0, 1],
            "y": [0.0, 1.0],
            "source": "measured",
        }
        for figure, label in (("1", "p = 2"), ("2a", "hard concrete, atoms"), ("2a", "binary"))
    ]
    found = Results("louizos2018-figures", "c", rows)
    one, two = (FIGURES["louizos2018-figures", view](found) or "" for view in ("1", "2a"))
    assert "p = 2" not in two
    assert "hard concrete, atoms" in two
    assert one.startswith("<svg")
    assert FIGURES["louizos2018-figures", "2b"](found) is None


def test_a_spread_is_written_once_per_unit() -> None:
    assert spread(Stat(2.0, 0.1, 3), percent) == "2.00 ± 0.10 %"
    assert spread(Stat(2.0, None, 1), percent) == "2.00 %"
    assert spread(Stat(5.0, 0.0, 3), exact) == "5"
    assert spread(Stat(125.0, 2.0, 3), seconds) == "2 min 05 s ± 2.0 s"
    assert spread(None, exact) == "–"


def test_long_tables_are_folded(root: Path) -> None:
    rows = [_measured(f"r{n}", method=f"way {n}", error=1.0 + n) for n in range(LONG + 1)]
    for name, count in (("long", LONG + 1), ("short", LONG)):
        Results(name, "c", rows[:count], date="2026-01-02").save(root / "results" / f"{name}.json")
    (root / "docs/how").mkdir()
    path = _write(root, "table long", "table short", name="docs/how/page.md")
    regenerate(root)
    text = path.read_text(encoding="utf-8")
    assert text.count("<details") == text.count("</details>") == 1
    assert f"<summary>The table: {LONG + 1} lines</summary>\n\n| network" in text
    assert regenerate(root, check=True) == []
