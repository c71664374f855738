"""SHA-256 of several streams at once.

A processor's own instructions for SHA-256 wait for each other, so that one stream keeps few of
its units busy; two streams of them, or eight in the lanes of vector registers, keep all of them.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from llvmlite import binding

from momacli.compiled import sha256_instructions, sha256_vectors
from momacli.compiled.machine_code import machine_code


@dataclass(frozen=True)
class Compressor:
    """What hashes blocks of as many streams as there are lanes.

    compress: takes the address of a table [lanes, 2] of int64 and the number of blocks. In the
        table are addresses: of each stream's state, eight uint32 words, which is replaced, and of
        its first block, which the others follow. Two lanes may do the same: both come to one state.
    """

    lanes: int
    compress: Callable[[int, int], None]


@functools.cache
def compressor() -> Compressor:
    """The faster one on this processor, compiled once. Raises RuntimeError."""
    return compressor_of(way())


def compressor_of(chosen: ModuleType) -> Compressor:
    """One of the two ways. Raises RuntimeError where the processor lacks what it takes."""
    compress = machine_code(chosen.NAME, chosen.write, chosen.__file__ or "")
    return Compressor(chosen.LANES, compress)


def way() -> ModuleType:
    """Which way is the faster one, by what the processor has.

    Its instructions for SHA-256, except where vectors rotate in one instruction, those of AVX-512.
    """
    features = binding.get_host_cpu_features()
    by_instructions = features.get("sha") and not features.get("avx512f")
    return sha256_instructions if by_instructions else sha256_vectors
