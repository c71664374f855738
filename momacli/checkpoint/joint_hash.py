"""SHA-256 of several streams at once, in about half the time of one after another."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from momacli.checkpoint.arrays import Array
from momacli.compiled.sha256 import compressor
from momacli.compiled.sha256_constants import BLOCK, INITIAL


class JointHash:
    """A SHA-256 that `update_together` computes beside others.

    Alone it takes as long as two of them, or as eight, as many as there are lanes.

    It is for one thread at a time.
    """

    def __init__(self) -> None:
        self.length = 0  # bytes hashed
        self.state = np.array(INITIAL, dtype=np.uint32)
        self.begun = np.empty(BLOCK, dtype=np.uint8)  # a block of which not all is there yet
        self.state_at, self.begun_at = _address(self.state), _address(self.begun)

    def update(self, part: bytes | memoryview) -> None:
        """Add bytes."""
        update_together([(self, part)])

    update_here = update

    def hexdigest(self) -> str:
        """Digest of all bytes so far."""
        padded = JointHash()
        padded.length = self.length
        padded.state[:], padded.begun[:] = self.state, self.begun
        zeros = -(self.length + 9) % BLOCK
        padded.update(b"\x80" + bytes(zeros) + (8 * self.length).to_bytes(8, "big"))
        return padded.state.astype(">u4").tobytes().hex()

    def close(self) -> None:
        """Like that of a hash with a thread of its own: here is none to end."""


class _Run(NamedTuple):
    """Whole blocks of one stream, by the addresses of its state and of the first of them."""

    state: int
    start: int
    blocks: int


def update_together(parts: Sequence[tuple[JointHash, bytes | memoryview]]) -> None:
    """Add to each hash bytes of its own, as many as there are; no hash may come twice."""
    arrays = [np.frombuffer(part, dtype=np.uint8) for _, part in parts]  # which keep them alive
    completed, whole, rests = list[_Run](), list[_Run](), list[tuple[JointHash, Array]]()
    for (stream, _), values in zip(parts, arrays, strict=True):
        size, start = values.size, _address(values)
        begun = stream.length % BLOCK
        stream.length += size
        used = min(size, -begun % BLOCK)
        if used:
            stream.begun[begun : begun + used] = values[:used]
            if begun + used == BLOCK:
                completed.append(_Run(stream.state_at, stream.begun_at, 1))
        blocks, rest = divmod(size - used, BLOCK)
        if blocks:
            whole.append(_Run(stream.state_at, start + used, blocks))
        if rest:
            rests.append((stream, values[size - rest :]))
    _compress(completed)
    _compress(whole)
    for stream, values in rests:
        stream.begun[: values.size] = values


def _compress(runs: list[_Run]) -> None:
    """Hash runs side by side; lanes that are left over do what the first one does."""
    hashing = compressor()
    if len(runs) > hashing.lanes:
        runs = _take_turns(runs)
    while runs:
        together = runs[: hashing.lanes]
        blocks = min([run.blocks for run in together])
        lanes = together + together[:1] * (hashing.lanes - len(together))
        table = np.array([run[:2] for run in lanes], dtype=np.int64)
        hashing.compress(_address(table), blocks)
        runs = runs[hashing.lanes :] + [
            _Run(run.state, run.start + blocks * BLOCK, run.blocks - blocks)
            for run in together
            if run.blocks > blocks
        ]


def _take_turns(runs: list[_Run]) -> list[_Run]:
    """Hash equal shares of more runs than there are lanes, in turn, so that no lane is left over.

    Returns what is left of them.
    """
    hashing = compressor()
    share = min([run.blocks for run in runs]) // hashing.lanes
    if not share:
        return runs
    whole = hashing.lanes * share
    turns = np.arange(len(runs) * hashing.lanes).reshape(len(runs), hashing.lanes)
    before, which = np.divmod(turns, len(runs))  # shares of a run that are done, and the run
    states, starts, _ = np.array(runs, dtype=np.int64).T
    table = np.stack([states[which], starts[which] + before * (share * BLOCK)], axis=-1)
    first = _address(table)
    for turn in range(len(runs)):
        hashing.compress(first + turn * table.strides[0], share)
    return [
        _Run(run.state, run.start + whole * BLOCK, run.blocks - whole)
        for run in runs
        if run.blocks > whole
    ]


def _address(values: Array) -> int:
    found: int = values.__array_interface__["data"][0]
    return found
