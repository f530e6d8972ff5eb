"""Where published files are: looked for in folders, downloaded when absent, and read only when their md5 is right.

The folders are the `root` that the caller names, else the one in the environment variable PARING_DATA, then the cache,
`pooch.os_cache("paring")`, which downloads go to.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from paring.data.data_error import DataError, extra


@dataclass(frozen=True)
class File:
    """A published file: its name, its md5 and the number of examples in it (0 for an archive)."""

    name: str
    md5: str
    count: int = 0


@dataclass(frozen=True)
class Source:
    """A published data set.

    files: what is read, in the order that the reader wants. homes: URLs that end in "/", tried in turn. folders: where
    the files may lie below a root; downloads use the first. archive: the .tar.gz they are published in, if they are.
    inside: their folder in the archive.
    """

    files: tuple[File, ...]
    homes: tuple[str, ...]
    folders: tuple[str, ...]
    archive: File | None = None
    inside: str = ""


def roots(root: str | Path | None) -> tuple[Path, ...]:
    """The folders to look in, best first. Raises DataError when the one asked for is no folder."""
    named, why = (root, "root") if root is not None else (os.environ.get("PARING_DATA"), "PARING_DATA")
    if not named:
        return cache()
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise DataError(f"{why} is {str(named)!r}, which is not a folder; make it name the folder that holds the data")
    return (folder, *cache())


def cache() -> tuple[Path, ...]:
    """The folder that downloads go to; nothing when pooch is not installed."""
    try:
        import pooch
    except ImportError:
        return ()
    return (Path(pooch.os_cache("paring")),)


def locate(source: Source, root: str | Path | None) -> tuple[dict[File, Path], tuple[File, ...]]:
    """(files found and where, files missing): all of `source.files`, or its archive alone."""
    below = roots(root)

    def found(file: File, folders: list[Path]) -> Path | None:
        paths = (base / folder / file.name for base in below for folder in folders)
        return next((path for path in paths if path.is_file()), None)

    loose = [Path(folder, source.inside) for folder in source.folders]
    loose += [Path(folder) for folder in source.folders if folder]  # never the root itself: the names are too common
    paths = {file: path for file in source.files if (path := found(file, loose))}
    if len(paths) == len(source.files):
        return paths, ()
    if source.archive is None:
        return paths, tuple(file for file in source.files if file not in paths)
    path = found(source.archive, [Path(folder) for folder in source.folders])
    return ({source.archive: path}, ()) if path else ({}, (source.archive,))


def ensure(name: str, source: Source, root: str | Path | None, *, download: bool) -> dict[File, Path]:
    """Where the files of `source` are, after downloading the missing ones if allowed. Raises DataError."""
    paths, missing = locate(source, root)
    if missing and not download:
        raise _absent(name, source, missing, root, "it may not be downloaded (download=False)")
    return paths | {file: _download(name, source, file, missing, root) for file in missing}


def read(source: Source, paths: dict[File, Path]) -> dict[File, bytes]:
    """The checked bytes of `source.files`, from `paths` as `ensure` gives them. Raises DataError for a damaged file."""
    contents = {file: verified(file, path) for file, path in paths.items()}
    if source.archive is not None and source.archive in contents:
        members = _members(contents[source.archive], {f"{source.inside}/{file.name}" for file in source.files})
        where = paths[source.archive]
        contents = {file: members.get(f"{source.inside}/{file.name}", b"") for file in source.files}
        for file, data in contents.items():
            _check(file, data, f"{where}: {source.inside}/{file.name}")
    return {file: contents[file] for file in source.files}


def verified(file: File, path: Path) -> bytes:
    """The bytes at `path`. Raises DataError unless they are those of the published `file`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    _check(file, data, str(path))
    return data


def _check(file: File, data: bytes, where: str) -> None:
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if md5 != file.md5:
        raise DataError(
            f"{where} is not the published {file.name}: {len(data)} bytes with md5 {md5}, expected md5 {file.md5}. "
            "It is damaged, cut short or another file: put the published one in its place, or move it elsewhere to have that downloaded"
        )


def _members(archive: bytes, wanted: set[str]) -> dict[str, bytes]:
    members = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            for member in tar:
                if member.name in wanted and (stream := tar.extractfile(member)):
                    members[member.name] = stream.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError, KeyError) as error:
        raise DataError(f"the archive cannot be unpacked: {error}") from error
    return members


def _download(name: str, source: Source, file: File, missing: tuple[File, ...], root: str | Path | None) -> Path:
    try:
        pooch = extra("pooch")
    except ImportError as error:
        raise _absent(name, source, missing, root, "downloading needs pooch: `pip install paring[data]`") from error
    problems = []
    for home in source.homes:
        url, folder = home + file.name, cache()[0] / source.folders[0]
        try:
            return Path(pooch.retrieve(url, known_hash=f"md5:{file.md5}", fname=file.name, path=folder))
        except (OSError, ValueError) as error:
            problems.append(f"{url}: {error}")
    why = f"{file.name} (md5 {file.md5}) could not be downloaded: " + "; ".join(problems)
    raise _absent(name, source, missing, root, why)


def _absent(name: str, source: Source, missing: tuple[File, ...], root: str | Path | None, why: str) -> DataError:
    places = ", ".join(str(base / source.folders[0]) for base in roots(root))
    return DataError(
        f"{name} needs {', '.join(file.name for file in missing)}, found neither below a folder named by the "
        f"environment variable PARING_DATA (or root=) nor in the cache (looked in {places or 'no folder'} and the "
        f"like); {why}. Get it from {source.homes[0]} and set PARING_DATA to a folder that holds it as "
        f"{source.folders[0]}/{missing[0].name}"
    )
