"""The results file of a benchmark grows row by row, and what is there is not measured again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evidence.benches.book import Asked, Book
from paring.cli.results import ResultsError, load


def test_rows_are_added_once_and_replaced_when_asked(tmp_path: Path) -> None:
    asked = Asked(tmp_path / "results", 3)
    book = Book(asked, "speed")
    assert book.wants("a/1")
    book.add({"run": "a/1", "ratio": 2.0})
    book.add({"run": "b/1", "ratio": 3.0})
    assert not book.wants("a/1")
    assert not Book(asked, "speed").wants("a/1"), "another process sees it too"
    assert book.wants("a/2")
    again = Book(replace(asked, again=True), "speed")
    assert again.wants("a/1")
    again.add({"run": "a/1", "ratio": 4.0})
    found = load(again.close())
    assert [(row["run"], row["ratio"]) for row in found.rows] == [("a/1", 4.0), ("b/1", 3.0)]
    assert found.command == "python -m evidence bench speed"
    assert {row["threads"] for row in found.rows} == {torch.get_num_threads()}
    assert {row["source"] for row in found.rows} == {"measured"}


def test_only_what_is_named(tmp_path: Path) -> None:
    book = Book(Asked(tmp_path, 3, only="resnet20/"), "speed")
    assert book.wants("resnet20/zero")
    assert not book.wants("resnet50/zero")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text("{", encoding="utf-8")
    with pytest.raises(ResultsError, match=r"speed.json is damaged.* It stays as it is"):
        Book(Asked(tmp_path, 3), "speed").add({"run": "a"})
    assert (tmp_path / "speed.json").read_text(encoding="utf-8") == "{"
