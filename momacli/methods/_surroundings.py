"""How a process computes while a method merges: on how many threads, and whose memory is whose."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from momacli.models.device import one_thread

if TYPE_CHECKING:
    from momacli.methods._catalog import Method

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Parameters of `mallopt`, as glibc numbers them."""

_LARGE = 4 << 20
"""Bytes of an allocation that goes back to the system as soon as it is free."""

_LATER = 32 << 20
"""The same afterwards: the most that glibc itself comes to."""


def surroundings(method: "Method", device: str) -> AbstractContextManager[object]:
    """While the context is open, compute as suits the method on a device."""
    if method.computes_on_matrices and device == "cpu":
        return freed_at_once()
    return one_thread() if method.elementwise and not method.takes_arrays else nullcontext()


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Give large arrays back to the system when they are freed, while the context is open.

    Decompositions come and go in arrays of many sizes, between which glibc would keep a quarter
    of a gigabyte in pieces: of three experts of 1.1 billion parameters, iso-c then took 1.1 GB.
    What clearing new memory takes is nothing beside them. With another C library nothing is
    done.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    set_option = getattr(library, "mallopt", None)
    if set_option is None:
        yield
        return
    set_option(_MMAP_THRESHOLD, _LARGE)
    set_option(_TRIM_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        set_option(_MMAP_THRESHOLD, _LATER)
        set_option(_TRIM_THRESHOLD, 2 * _LATER)
