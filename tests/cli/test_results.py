"""Evidence files: what goes in comes out, a damaged or wrong one is refused by name, seeds are summarised right."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from paring.cli import results
from paring.cli.results import Results, ResultsError, load, machine, summarise, validate, versions

ROW = {"run": "a", "model": "mlp", "seed": 0, "error": 1.5, "source": "measured"}


def _file(tmp_path: Path, **changes: Any) -> Path:
    content = Results("some", "python -m evidence table some", [ROW]).to_dict() | changes
    path = tmp_path / "some.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    made = Results("some", "python -m evidence table some", [ROW, {"run": "q", "error": 1.8, "source": "quoted"}])
    made.save(tmp_path / "deep" / "some.json")
    assert load(tmp_path / "deep" / "some.json") == made
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["some.json"]


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    Results("some", "c", [ROW]).save(path)
    first = path.read_bytes()
    load(path).save(path)
    assert path.read_bytes() == first


def test_a_row_with_the_same_run_is_replaced_in_its_place() -> None:
    found = Results("some", "c", [ROW, {**ROW, "run": "b"}])
    merged = found.merge({**ROW, "run": "a", "error": 9.0}).merge({**ROW, "run": "c"})
    assert [(row["run"], row["error"]) for row in merged.rows] == [("a", 9.0), ("b", 1.5), ("c", 1.5)]
    assert found.rows[0]["error"] == 1.5


def test_rows_without_a_run_are_appended() -> None:
    row = {"error": 2.0, "source": "quoted"}
    assert len(Results("some", "c", [row]).merge(row).rows) == 2


def test_a_row_of_another_day_or_machine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Results("some", "c", [ROW], date="2020-01-01", machine={"cpu": "old one"}, versions=versions())
    monkeypatch.setattr(results, "today", lambda: "2020-02-02")
    monkeypatch.setattr(results, "machine", lambda: {"cpu": "new one"})
    merged = found.merge({**ROW, "run": "b"})
    assert merged.rows[1]["date"] == "2020-02-02"
    assert merged.rows[1]["machine"] == {"cpu": "new one"}
    assert "versions" not in merged.rows[1]
    assert "2020-01-01 to 2020-02-02" in merged.made()
    assert "old one" in merged.made()
    assert "new one" in merged.made()
    replaced = merged.merge({**ROW, "run": "a"})
    assert "old one" not in replaced.made(), "no row of the old machine is left"
    assert "date" not in found.merge({"run": "q", "source": "quoted"}).rows[1]


def test_machine_and_versions_are_generic() -> None:
    assert machine()["cpu"]
    assert machine()["cores"] >= 1
    assert set(versions()) == {"python", "torch", "numpy", "paring"}
    import platform

    assert platform.node() not in json.dumps(machine()) or not platform.node()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rows": {}}, "'rows' must be list, not dict"),
        ({"date": "yesterday"}, "'date' is 'yesterday'"),
        ({"command": " "}, "'command' is empty"),
        ({"machine": "fast"}, "'machine' must be dict"),
        ({"rows": [3]}, "row 0 must be an object"),
        ({"rows": [{"error": 1.0}]}, "row 0: 'source' is None"),
        ({"rows": [{**ROW, "source": "guessed"}]}, "row 0: 'source' is 'guessed'"),
        ({"rows": [ROW, ROW]}, "row 1: 'run' is 'a'"),
        ({"rows": [{**ROW, "date": 3}]}, "row 0: 'date' is 3"),
        ({"name": "other"}, "other.json"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    path = _file(tmp_path, **changes)
    with pytest.raises(ResultsError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert problem in str(caught.value)


def test_every_missing_part_is_named(tmp_path: Path) -> None:
    whole = Results("some", "c", [ROW]).to_dict()
    for key in whole:
        with pytest.raises(ResultsError, match=f"here: '{key}' is missing"):
            validate({k: v for k, v in whole.items() if k != key}, "here")


@pytest.mark.parametrize("keep", [0, 1, 40, -2])
def test_a_file_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    path = _file(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ResultsError, match=r"some\.json"):
        load(path)


@pytest.mark.parametrize("text", ["[1]", "null", '{"rows": NaN}', "\xff\xfe", "[" * 100_000])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ResultsError, match=r"some\.json"):
        load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"deep": [float("nan")]}, {1, 2}, {3: 4}])
def test_values_that_json_cannot_hold_are_refused_before_writing(value: object) -> None:
    with pytest.raises(ResultsError, match="the_key"):
        Results("some", "c", [{**ROW, "the_key": value}])


def test_saving_under_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"some\.json"):
        Results("some", "c").save(tmp_path / "other.json")


def test_summarise_agrees_with_the_standard_library() -> None:
    errors = [1.0, 1.5, 4.0]
    rows: list[dict[str, Any]] = [{"model": "a", "seed": i, "error": e} for i, e in enumerate(errors)]
    rows += [{"model": "b", "seed": 0, "error": 7.0}, {"seed": 1, "error": None}]
    a, b, none = summarise(rows, ("model",), ("error", "bytes"))
    assert (a.key, a.n, set(a.stats)) == ({"model": "a"}, 3, {"error"})
    assert a.stats["error"].mean == pytest.approx(statistics.fmean(errors))
    assert a.stats["error"].std == pytest.approx(statistics.stdev(errors))
    assert (b.stats["error"].mean, b.stats["error"].std, b.stats["error"].n) == (7.0, None, 1)
    assert (none.key, none.stats) == ({"model": None}, {})


def test_a_mean_of_words_is_refused() -> None:
    with pytest.raises(ResultsError, match="'error' is 'low'"):
        summarise([{"error": "low"}], (), ("error",))
