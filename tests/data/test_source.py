"""Where files are looked for, what is refused, and the download, from a server on this machine."""

from __future__ import annotations

import io
import re
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from paring.data import DataError, Dataset, fetch, load, sets, status
from paring.data.source import File
from paring.data.source import cache as real_cache
from tests.missing import lacks


def same(a: Dataset, b: Dataset) -> bool:
    pairs = zip((a.train, a.validation, a.test), (b.train, b.validation, b.test), strict=True)
    return all(torch.equal(p.x, q.x) and torch.equal(p.y, q.y) for p, q in pairs)


def publish(name: str, **changes: object) -> None:
    sets.SOURCES[name] = replace(sets.SOURCES[name], **changes)  # type: ignore[arg-type]


def archive(folder: Path, path: Path, *, leave_out: str = "") -> File:
    """`folder` as a .tar.gz at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        tar.add(
            folder,
            arcname=folder.name,
            filter=lambda member: None if member.name.endswith(leave_out or "?") else member,
        )
    return File(path.name, md5(path.read_bytes()).hexdigest())


def test_root_goes_before_the_variable_and_that_before_the_cache(
    tiny: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load("mnist", root=tiny, download=False)
    with pytest.raises(DataError, match=r"mnist needs train-images.gz, train-labels.gz"):
        load("mnist", download=False)
    tiny.rename(cache)
    assert same(load("mnist", download=False), expected)
    bad = tmp_path / "bad" / "mnist" / "t10k-labels.gz"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"no")
    monkeypatch.setenv("PARING_DATA", str(tmp_path / "bad"))
    with pytest.raises(DataError, match=re.escape(str(bad))):
        load("mnist", download=False)
    assert same(load("mnist", root=cache, download=False), expected)


def test_a_folder_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in (load, fetch):
        with pytest.raises(DataError, match=r"root is .*absent', which is not a folder"):
            call("mnist", root=tmp_path / "absent")
    monkeypatch.setenv("PARING_DATA", str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"PARING_DATA is .*absent', which is not a folder"):
        status()


@pytest.mark.parametrize("where", ["cifar-100-python", "cifar-100/cifar-100-python", "cifar-100"])
def test_loose_pickles_are_found_in_their_natural_places(tiny: Path, where: str) -> None:
    expected = load("cifar100", root=tiny)
    (tiny / "cifar-100-python").rename(tiny / "elsewhere")
    (tiny / where).parent.mkdir(exist_ok=True)
    (tiny / "elsewhere").rename(tiny / where)
    assert same(load("cifar100", root=tiny, download=False), expected)


@pytest.mark.parametrize("where", ["c.tar.gz", "cifar-100/c.tar.gz"])
def test_the_archive_will_do_when_pickles_are_missing(tiny: Path, where: str) -> None:
    expected = load("cifar100", root=tiny)
    publish("cifar100", archive=archive(tiny / "cifar-100-python", tiny / where))
    (tiny / "cifar-100-python" / "test").unlink()
    assert same(load("cifar100", root=tiny, download=False), expected)
    assert fetch("cifar100", root=tiny) == (tiny / where,)


def test_bad_archives_are_refused(tiny: Path) -> None:
    packed = tiny / "c.tar.gz"
    whole = archive(tiny / "cifar-100-python", packed)
    lacking = archive(tiny / "cifar-100-python", packed, leave_out="test")
    (tiny / "cifar-100-python").rename(tiny / "gone")
    publish("cifar100", archive=whole)
    with pytest.raises(DataError, match=rf"md5 {lacking.md5}, expected md5 {whole.md5}"):
        load("cifar100", root=tiny)
    publish("cifar100", archive=lacking)
    with pytest.raises(DataError, match=r"c.tar.gz: cifar-100-python/test is not the published test: 0 bytes"):
        load("cifar100", root=tiny)
    packed.write_bytes(packed.read_bytes()[:2000])
    publish("cifar100", archive=File(packed.name, md5(packed.read_bytes()).hexdigest()))
    with pytest.raises(DataError, match="cannot be unpacked"):
        load("cifar100", root=tiny)


@pytest.mark.parametrize("name", ["mnist", "cifar100"])
def test_any_wrong_byte_in_any_file_is_refused(tiny: Path, name: str) -> None:
    folder = tiny / (sets.SOURCES[name].inside or name)
    for file in sets.SOURCES[name].files:
        path = folder / file.name
        right = path.read_bytes()
        for wrong in (right[:-1], right + b"\0", b"", right[:20] + bytes([right[20] ^ 1]) + right[21:]):
            path.write_bytes(wrong)
            expected = f"{path} is not the published {file.name}: {len(wrong)} bytes with md5 {md5(wrong).hexdigest()}"
            with pytest.raises(DataError, match=f"{re.escape(expected)}, expected md5 {file.md5}"):
                load(name, root=tiny, download=False)
        path.write_bytes(right)
    load(name, root=tiny, download=False)


def test_the_right_md5_of_wrong_content_is_refused_too(tiny: Path) -> None:
    images, labels, *rest = sets.SOURCES["mnist"].files
    publish("mnist", files=(images, replace(labels, count=21), *rest))
    with pytest.raises(DataError, match=r"train-labels.gz holds the shape \(20,\), expected \(21,\)"):
        load("mnist", root=tiny)
    publish("mnist", files=(labels, images, *rest))
    with pytest.raises(DataError, match=r"expected \(20, 28, 28\)"):
        load("mnist", root=tiny)


def test_status_tells_what_is_there_and_what_is_wrong(tiny: Path) -> None:
    (tiny / "mnist" / "t10k-labels.gz").write_bytes(b"no")
    (tiny / "mnist" / "t10k-images.gz").unlink()
    records = {(record.name, record.file): record for record in status(tiny)}
    assert list(records) == [
        ("digits", "scikit-learn"),
        *(("mnist", f"{file}.gz") for file in ("train-images", "train-labels", "t10k-labels", "t10k-images")),
        ("cifar100", "train"),
        ("cifar100", "test"),
    ]
    good = records["cifar100", "test"]
    path = tiny / "cifar-100-python" / "test"
    assert (good.path, good.size, good.ok, good.problem) == (path, path.stat().st_size, True, "")
    bad = records["mnist", "t10k-labels.gz"]
    assert (bad.path, bad.size, bad.ok) == (tiny / "mnist" / "t10k-labels.gz", 2, False)
    assert "expected md5" in bad.problem
    absent = records["mnist", "t10k-images.gz"]
    assert (absent.path, absent.size, absent.ok, absent.problem) == (None, None, False, "not found")
    assert records["digits", "scikit-learn"].ok != lacks("sklearn")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the URL that serves it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join()


def test_missing_files_are_downloaded_checked_and_kept(tiny: Path, cache: Path, server: tuple[Path, str]) -> None:
    folder, url = server
    expected = load("mnist", root=tiny)
    here, there = tiny / "mnist", folder / "set"
    there.mkdir()
    publish("mnist", homes=(url + "absent/", url + "set/"))
    for name in ("t10k-images.gz", "t10k-labels.gz"):
        (here / name).rename(there / name)
    assert same(load("mnist", root=tiny), expected)
    assert sorted(path.name for path in (cache / "mnist").iterdir()) == ["t10k-images.gz", "t10k-labels.gz"]
    (there / "t10k-images.gz").unlink()
    assert same(load("mnist", root=tiny), expected)  # from the cache now
    assert fetch("mnist", root=tiny)[2] == cache / "mnist" / "t10k-images.gz"


def test_the_archive_is_downloaded_for_pickles(tiny: Path, cache: Path, server: tuple[Path, str]) -> None:
    folder, url = server
    expected = load("cifar100", root=tiny)
    publish("cifar100", homes=(url,), archive=archive(tiny / "cifar-100-python", folder / "c.tar.gz"))
    assert fetch("cifar100") == (cache / "cifar-100" / "c.tar.gz",)
    assert same(load("cifar100"), expected)


def test_a_wrong_download_is_refused_and_not_kept(tiny: Path, cache: Path, server: tuple[Path, str]) -> None:
    folder, url = server
    publish("cifar100", homes=(url,), archive=File("c.tar.gz", "0" * 32))
    (folder / "c.tar.gz").write_bytes(b"<html>sign in first</html>")
    with pytest.raises(DataError, match=rf"c.tar.gz \(md5 {'0' * 32}\) could not be downloaded: {url}c.tar.gz: "):
        load("cifar100")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_failed_download_says_what_was_wanted_from_where_and_what_to_do(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def retrieve(url: str, **options: object) -> str:
        asked.append((url, options["known_hash"]))
        raise OSError("no route to host")

    monkeypatch.setattr("pooch.retrieve", retrieve)
    publish("mnist", homes=("http://one.invalid/", "http://two.invalid/"))
    images = sets.SOURCES["mnist"].files[0]
    with pytest.raises(DataError) as caught:
        load("mnist")
    for part in (
        "mnist needs train-images.gz",
        f"md5 {images.md5}",
        "http://one.invalid/train-images.gz: no route to host",
        "http://two.invalid/train-images.gz: no route to host",
        f"looked in {cache / 'mnist'}",
        "set PARING_DATA to a folder that holds it as mnist/train-images.gz",
    ):
        assert part in str(caught.value)
    assert asked == [(f"http://{home}.invalid/train-images.gz", f"md5:{images.md5}") for home in ("one", "two")]
    asked.clear()
    with pytest.raises(DataError, match="download=False"):
        load("mnist", download=False)
    assert not asked


def test_without_pooch_local_files_still_do(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(real_cache()) == (0 if lacks("pooch") else 1)
    monkeypatch.setitem(sys.modules, "pooch", None)
    monkeypatch.setattr("paring.data.source.cache", real_cache)
    assert real_cache() == ()
    assert len(load("mnist", root=tiny).train) == 20
    (tiny / "mnist" / "t10k-labels.gz").unlink()
    with pytest.raises(DataError, match=r"pip install paring\[data\].*set PARING_DATA"):
        load("mnist", root=tiny)


def test_an_unreadable_file_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_bytes(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(DataError, match=r"train-images.gz cannot be read: .*Permission denied"):
        load("mnist", root=tiny)


def test_links_and_folders_in_an_archive_are_not_followed(tiny: Path) -> None:
    packed = tiny / "c.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        for name, kind in (("train", tarfile.DIRTYPE), ("test", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member, io.BytesIO())
    (tiny / "cifar-100-python").rename(tiny / "gone")
    publish("cifar100", archive=File(packed.name, md5(packed.read_bytes()).hexdigest()))
    with pytest.raises(DataError, match=r"cannot be unpacked|0 bytes"):
        load("cifar100", root=tiny)
