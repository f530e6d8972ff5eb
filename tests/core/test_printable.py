"""Nothing that a file says moves the cursor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paring.core.printable import printable
from paring.core.regular import open_regular


def test_escapes() -> None:
    assert printable("blocks.0.µ é") == "blocks.0.µ é"
    assert printable("a\x1b[31m\n\t\r\u202e\udc80\U000e0001") == r"a\x1b[31m\n\t\r\u202e\udc80\U000e0001"
    assert printable("a" * 50, longest=10) == "a" * 9 + "…"
    assert printable(3) == "3"


def test_only_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"here")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"here"
    os.mkfifo(tmp_path / "pipe")
    for path, why in (("pipe", "a pipe"), ("", "a folder"), ("no", "No such file"), ("a\0b", "null byte")):
        with pytest.raises(OSError, match=why):
            open_regular(tmp_path / path)
