"""Which files of a merge are hashed side by side: where that takes less time than hashlib."""

import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest

from momacli.checkpoint.reader import Checkpoint, TensorFile

_TOGETHER = 8
"""Streams that both ways are compared by: as many as there are lanes."""

_FEWEST = 6
"""Files from which on it pays: eight take half the time of hashlib, whose instructions for
SHA-256 most processors have, and fewer take as long as eight."""

_ALIKE = 0.9
"""The least size of a file as a share of the largest beside it: what is left of that is hashed
alone, four times as slowly as by hashlib."""

_WORTH_IT = 1 << 29
"""Bytes of all files together: what is saved of them, 0.2 s of processor time, is three times
what it takes to load the code; to compile it, once, takes 0.3 s."""

_SAMPLE, _TIMES = 1 << 16, 8
"""Bytes of each stream that both ways are measured by, and how often: 5 ms in all. Meanwhile
something else may have the processor, so the least time of each counts."""


def start_hashes(checkpoints: Sequence[Checkpoint], *, in_step: bool) -> None:
    """Hash what is read of checkpoints from now on, so that `sha256` need not read it again.

    in_step: whether pieces of all of them will be read in turn, in one thread.
    """
    if in_step and all(checkpoint.concurrent for checkpoint in checkpoints):
        shards = zip_longest(*(checkpoint.files for checkpoint in checkpoints))
        files = [file for companions in shards for file in _to_join(companions)]
        if sum(file.size for file in files) >= _WORTH_IT and lanes_are_faster():
            from momacli.checkpoint.company import Company

            Company(files)
    for checkpoint in checkpoints:
        checkpoint.start_hash()


def _to_join(files: Iterable[TensorFile | None]) -> list[TensorFile]:
    """Those of files read at the same time that fill the lanes well; more of them take turns."""
    groups = list[list[TensorFile]]()
    new = {file for file in files if file is not None and file.is_new()}
    for file in sorted(new, key=lambda file: (-file.size, str(file.path))):
        if not groups or file.size < _ALIKE * groups[-1][0].size:
            groups.append([])
        groups[-1].append(file)
    return [file for group in groups if len(group) >= _FEWEST for file in group]


@functools.cache
def lanes_are_faster() -> bool:
    """Whether they are on this processor, and come to what hashlib does."""
    try:
        from momacli.checkpoint.joint_hash import JointHash, update_together

        shares = [os.urandom(_SAMPLE) for _ in range(_TOGETHER)]
        lanes, alone = [JointHash() for _ in shares], [hashlib.sha256() for _ in shares]
        times = [
            (
                _seconds(lambda: update_together([*zip(lanes, shares, strict=True)])),
                _seconds(lambda: _update_in_turn(alone, shares)),
            )
            for _ in range(_TIMES)
        ]
    except Exception:  # whatever the compiler cannot do here, hashlib can
        return False
    together, in_turn = map(min, zip(*times, strict=True))
    agree = [one.hexdigest() for one in lanes] == [one.hexdigest() for one in alone]
    return agree and together < in_turn


def _update_in_turn(hashes: Iterable["hashlib._Hash"], shares: Iterable[bytes]) -> None:
    for one, share in zip(hashes, shares, strict=True):
        one.update(share)


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
