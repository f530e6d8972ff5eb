"""What torch says of its own while it traces: nothing, so that the message at the end is ours.

`torch.export` logs hundreds of lines when a network cannot be traced, prints the unfinished graph to stderr and warns about
modules that it restores itself. With the environment variable `PARING_DEBUG` set, all of it is shown.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

_TORCH = str(Path(torch.__file__).resolve().parent)
_LOGGERS = ("torch", "onnxscript")


@contextmanager
def quiet() -> Iterator[None]:
    """Meanwhile logs of torch from this thread, what torch prints to stderr, and warnings but our own go nowhere.

    To be entered under `alone`, because filters of warnings and `sys.stderr` belong to the whole process.
    """
    if os.environ.get("PARING_DEBUG"):
        yield
        return
    mute = _Mute()
    handlers = _handlers()
    stderr = sys.stderr
    for handler in handlers:
        handler.addFilter(mute)
    shown = None if stderr is None else _WithoutTorch(stderr)
    try:
        if shown is not None:
            sys.stderr = shown
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(?!paring\.)")  # ours may come from other threads
            yield
    finally:
        if sys.stderr is shown:
            sys.stderr = stderr
        for handler in handlers:
            handler.removeFilter(mute)


class _Mute(logging.Filter):
    """Drops what torch logs in the thread that made this filter."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread or record.name.split(".")[0] not in _LOGGERS


def _handlers() -> list[logging.Handler]:
    """Those of torch's loggers, and where its records go otherwise."""
    found = [*logging.getLogger().handlers, *([logging.lastResort] if logging.lastResort else [])]
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.split(".")[0] in _LOGGERS and isinstance(logger, logging.Logger):
            found += logger.handlers
    return list(dict.fromkeys(found))


class _WithoutTorch:
    """A stream without what torch's own code prints to it."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if sys._getframe(1).f_code.co_filename.startswith(_TORCH):
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
