"""What one reading takes: seconds of CPU, and bytes of memory at its peak."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

try:
    import resource
except ImportError:  # Windows: no limits and no peaks
    resource = None  # type: ignore[assignment]

HANGS = 60.0
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Hangs(BaseException):
    """Reading did not end."""


class Taken:
    """What the block of `measured` took: CPU seconds, and bytes at the peak above those at its start."""

    seconds, memory = 0.0, 0


@contextmanager
def measured() -> Iterator[Taken]:
    """Measure a block. Raises `Hangs` in it after a minute by the clock."""
    taken = Taken()
    before = _restarted()
    started = time.process_time()
    try:
        with _alarm():
            yield taken
    finally:
        taken.seconds = time.process_time() - started
        taken.memory = max(0, _peak() - before)


@contextmanager
def bounded(more: int) -> Iterator[None]:
    """Meanwhile the process gets at most so many more bytes of addresses: what asks for more fails at once."""
    if resource is None or not _STATUS.exists():
        yield
        return
    now = _field("VmSize:")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = now + more if hard == resource.RLIM_INFINITY else min(hard, now + more)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _restarted() -> int:
    """Resident bytes now; peaks count from here."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return _peak()  # it only grows then: large readings still show, once
    return _field("VmRSS:")


def _peak() -> int:
    if _STATUS.exists():
        return _field("VmHWM:")
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _field(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    return 0


@contextmanager
def _alarm() -> Iterator[None]:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hangs

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
