"""Freed memory that is kept for the next step.

glibc gives freed blocks of more than 128 kB to 32 MB (the limit moves) back to the system, and a training step that asks
for the same ones again gets them page by page, zeroed. For LeNet-5 on one core that is a fifth of a dense step.
"""

from __future__ import annotations

import ctypes
import functools

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT, LARGEST = 512 << 20, 64 << 20


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep up to 512 MB of freed memory, of blocks up to 64 MB each; numbers do not change.

    Returns:
        Whether the C library knows how; others than glibc are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
