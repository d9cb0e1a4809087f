"""The memory allocator of the process."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _TRIM_BYTES = -1, 32 << 20
_M_MMAP_THRESHOLD, _MMAP_BYTES = -3, 2 << 20
_M_ARENA_MAX, _ARENAS = -8, 2


def tune_allocator() -> None:
    """Make the allocator fit for chunks of some 100 KiB, where the C library is glibc; elsewhere nothing is done.

    * By default it asks the kernel for the memory of each chunk and gives it back at once. The kernel clears it each
      time: more work than all else that is done with a chunk. Up to 2 MiB are taken from what was freed instead.
    * By default up to eight pools for each processor keep what was freed in them, so that chunks that wander between
      threads hold many times their size: measured on a combiner that takes 16 updates of 100 MB at a time, 50 to 70 MB.
      Here there are two.

    Call it before threads are started.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    mallopt(_M_ARENA_MAX, _ARENAS)
