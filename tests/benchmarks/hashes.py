"""How fast SHA-256 of several streams is: one after another by hashlib, and side by side."""

import argparse
import hashlib
import os
import time
from collections.abc import Callable
from functools import cache, partial
from unittest.mock import patch

from llvmlite import binding

from momacli.checkpoint import joint_hash
from momacli.checkpoint.joint_hash import JointHash, update_together
from momacli.compiled import sha256_instructions, sha256_vectors
from momacli.compiled.sha256 import compressor_of, way

_STREAMS, _BYTES = 8, 1 << 16
_TIMES = 200


def run(_arguments: argparse.Namespace) -> None:
    """Print GB a second of each way, and which of them a merge compares with hashlib here."""
    shares = [os.urandom(_BYTES) for _ in range(_STREAMS)]
    alone = [hashlib.sha256() for _ in shares]

    def in_turn() -> None:
        for one, share in zip(alone, shares, strict=True):
            one.update(share)

    print(f"{'hashlib, one after another':34} {_rate(in_turn):5.2f} GB/s")
    ways = {"instructions, two streams": sha256_instructions, "vectors, eight": sha256_vectors}
    for name, module in ways.items():
        if module is sha256_instructions and not binding.get_host_cpu_features().get("sha"):
            print(f"{name:34} not on this processor")
            continue
        streams = [JointHash() for _ in shares]
        with patch.object(joint_hash, "compressor", cache(partial(compressor_of, module))):
            rate = _rate(partial(update_together, [*zip(streams, shares, strict=True)]))
        chosen = ", which is chosen here" if module is way() else ""
        print(f"{name:34} {rate:5.2f} GB/s{chosen}")


def _rate(work: Callable[[], None]) -> float:
    """GB a second, the best of many times."""
    work()
    times = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return _STREAMS * _BYTES / min(times) / 1e9
