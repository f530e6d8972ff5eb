"""The compiled kernels, loaded when they are first used, and how their work is shared among threads."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any

import torch

LEAST_WORK = 1 << 22  # words compared; less than this is not worth a second thread


@cache
def kernels() -> Any:
    """`paring.bits.kernels`.

    Raises:
        ImportError: numba is not installed.
    """
    try:
        import numba  # noqa: F401
    except ImportError as error:
        raise ImportError("networks of bits need numba: pip install 'paring[bits]'") from error
    from paring.bits import kernels

    return kernels


def share(work: Callable[[int, int], object], count: int, cost: int, step: int = 1) -> None:
    """Call `work(start, stop)` on parts of range(count), on as many threads as torch uses; the caller's is one of them.

    Args:
        work: releases the interpreter's lock.
        count: pieces of work.
        cost: words that all of it compares.
        step: parts begin at multiples of it.
    """
    whole = -(-count // step)
    threads = min(torch.get_num_threads(), whole, max(1, cost // LEAST_WORK))
    if threads <= 1:
        work(0, count)
        return
    cuts = [min(count, whole * part // threads * step) for part in range(threads + 1)]
    pool = _pool(os.getpid(), threads - 1)
    parts = [pool.submit(work, start, stop) for start, stop in itertools.pairwise(cuts[1:])]
    try:
        work(*cuts[:2])
    finally:
        wait(parts)
    for part in parts:
        part.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """One per process: threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="paring-bits")
