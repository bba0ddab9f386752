"""Memory that a process keeps between tensors, where glibc would return it to the system and ask for it again.

glibc maps every tensor above 32 MB anew and unmaps it once it is freed; the system then clears its pages at the first
write. In a training step on a CPU that took a fifth of the time (docs/log.md).
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD = -1  # mallopt(3): free bytes at the heap's end that are returned; -1 returns none
M_MMAP_MAX = -4  # mallopt(3): blocks that may be mapped each on their own
DEFAULTS = ((M_MMAP_MAX, 65536), (M_TRIM_THRESHOLD, 128 * 1024))


@contextmanager
def kept_heap() -> Iterator[bool]:
    """Keep freed memory in the process inside the context, and return it at the end; yield whether that works here.

    It works with glibc only, and changes nothing else.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    works = hasattr(libc, "gnu_get_libc_version")
    if libc is not None and works:
        works = bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1))
    try:
        yield works
    finally:
        if libc is not None and works:
            for option, value in DEFAULTS:
                libc.mallopt(option, value)
            libc.malloc_trim(0)
