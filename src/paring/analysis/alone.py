"""One at a time, on one thread: what looking at a network needs.

`torch.export` is not re-entrant (it patches `nn.Module` while it traces), and verification sets switches that belong to the
whole process (the fast path of attention, random states), so one lock is held round both. Interpretation and verification are
thousands of small operations that gain nothing from threads, and lose much by them on a machine that does other work as well
(waiting threads spin), so they run on one.

The number of threads of `torch` is a setting of each Python thread, plus one that threads begin with. Only the first is set
here, so that other Python threads, new ones too, compute on as many threads as ever.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.RLock()


def _renew() -> None:
    """A forked process holds no lock that a thread of its parent held."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@contextmanager
def alone() -> Iterator[None]:
    """Meanwhile no other thread is in here, and operators of this one run on a single thread; may be nested.

    The user's number of threads is restored, after errors too. Works as a decorator: `@alone()`.
    """
    with _lock:
        before = torch.get_num_threads()
        if before != 1:
            _on_one_thread(before)
        try:
            yield
        finally:
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)


def _on_one_thread(before: int) -> None:
    """One thread for the calling Python thread; others go on beginning with `before`."""
    torch.set_num_threads(1)  # sets what new threads begin with as well
    helper = threading.Thread(target=torch.set_num_threads, args=(before,), name="paring-threads")
    helper.start()
    helper.join()
