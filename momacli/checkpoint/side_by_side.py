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

_FEWEST = {2: 2, 8: 6}
"""Files from which on it pays, by the number of lanes. Eight in vector registers take half the time
of hashlib, and fewer take as long as eight; two take three quarters of it, and one takes as long as
by hashlib."""

_ALIKE = 0.9
"""The least size of a file as a share of the largest beside it: what is left of that is hashed
alone, in vector registers four times as slowly as by hashlib."""

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
        groups = [group for companions in shards for group in _alike(companions)]
        if (files := _worth_joining(groups)) and lanes_are_faster():
            from momacli.checkpoint.company import Company

            Company(files)
    for checkpoint in checkpoints:
        checkpoint.start_hash()


def _alike(files: Iterable[TensorFile | None]) -> list[list[TensorFile]]:
    """Those of files read at the same time that fill lanes well; more of them take turns."""
    groups = list[list[TensorFile]]()
    new = {file for file in files if file is not None and file.is_new()}
    for file in sorted(new, key=lambda file: (-file.size, str(file.path))):
        if not groups or file.size < _ALIKE * groups[-1][0].size:
            groups.append([])
        groups[-1].append(file)
    return groups


def _worth_joining(groups: Sequence[Sequence[TensorFile]]) -> list[TensorFile]:
    """The files of groups that are large enough; none where all of them together are too small."""
    files = _of_groups(groups, min(_FEWEST.values()))
    if sum(file.size for file in files) < _WORTH_IT:
        return []
    files = _of_groups(groups, fewest())  # which loads something to know the processor
    return files if sum(file.size for file in files) >= _WORTH_IT else []


def _of_groups(groups: Iterable[Sequence[TensorFile]], least: int) -> list[TensorFile]:
    return [file for group in groups if len(group) >= least for file in group]


@functools.cache
def fewest() -> int:
    """Files from which on it may pay on this processor."""
    try:
        from momacli.compiled.sha256 import way

        return _FEWEST[way().LANES]
    except Exception:  # as below
        return max(_FEWEST.values())


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
