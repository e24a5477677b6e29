"""What a run asks of the computer it is on. To be imported before torch, whose threads it sets."""

import ctypes
import os

# How long a waiting thread spins before it sleeps. OpenMP's own choice, for ever, makes a machine
# that does anything else ten times slower; not to spin at all costs a quarter on one that does not.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h of glibc


def keep_freed_memory():
    """Let glibc keep blocks below 16 MB that were freed, instead of handing them to the kernel.

    A training step on a CPU would fault them in again for every activation: a fifth of its time.
    16 MB are all that the embedded base needs, and little of what a larger network does.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**24)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
