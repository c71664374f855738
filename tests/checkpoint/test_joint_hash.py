import functools
import hashlib
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from llvmlite import binding

from momacli.checkpoint import joint_hash
from momacli.checkpoint.joint_hash import JointHash, update_together
from momacli.compiled import sha256, sha256_instructions, sha256_vectors
from momacli.compiled.sha256 import Compressor, compressor_of
from momacli.compiled.sha256_constants import INITIAL, K

LANES = 8
"""As many as there are at most."""

SIZES = st.one_of(
    st.sampled_from([0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 129]), st.integers(0, 2000)
)
STEPS = st.lists(st.dictionaries(st.integers(0, LANES + 2), SIZES, max_size=LANES + 3), max_size=8)
"""What is added at a time: to streams, by their number, so many bytes."""


HAS_INSTRUCTIONS = bool(binding.get_host_cpu_features().get("sha"))


@pytest.fixture(
    autouse=True,
    params=[
        pytest.param(sha256_vectors, id="vectors"),
        pytest.param(
            sha256_instructions,
            id="instructions",
            marks=pytest.mark.skipif(
                not HAS_INSTRUCTIONS, reason="the processor has no instructions for SHA-256"
            ),
        ),
    ],
)
def compressor(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Compressor:
    """Both ways, whatever the processor would choose; the user's cache folder is left alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp()))
    chosen = _compressor_of(request.param)
    monkeypatch.setattr(joint_hash, "compressor", lambda: chosen)
    return chosen


_compressor_of = functools.cache(compressor_of)


@given(STEPS, st.integers(0, 2**32))
@example([dict.fromkeys(range(LANES), 64)], 0)
@example([{0: 55, 1: 56, 2: 63, 3: 64, 4: 65}, {0: 1, 1: 200, 3: 9}], 0)
@example([{number: number} for number in range(LANES)] + [dict.fromkeys(range(LANES), 640)], 0)
@example([dict.fromkeys(range(LANES + 1), 1600)] * 2, 0)
@example([{number: 1000 + 64 * number for number in range(LANES + 3)}], 0)
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_streams_added_to_together_and_alone_have_the_digests_of_hashlib(
    steps: list[dict[int, int]], seed: int
):
    bytes_of = random.Random(seed).randbytes
    streams, expected = {}, {}

    for step in steps:
        parts = {number: bytes_of(size) for number, size in step.items()}
        for number, part in parts.items():
            streams.setdefault(number, JointHash())
            expected.setdefault(number, hashlib.sha256()).update(part)
        if len(parts) == 1:
            streams[number].update(part)
        else:
            update_together([(streams[number], memoryview(part)) for number, part in parts.items()])

    for number, stream in streams.items():
        assert stream.hexdigest() == expected[number].hexdigest()
        assert stream.length == sum(step.get(number, 0) for step in steps)


def test_a_digest_may_be_asked_for_on_the_way():
    stream = JointHash()

    found = []
    for part in (b"", b"abc", b"d" * 100):
        stream.update(part)
        found.append(stream.hexdigest())

    assert found == [hashlib.sha256(b).hexdigest() for b in (b"", b"abc", b"abc" + b"d" * 100)]


def test_what_is_hashed_may_change_afterwards():
    memory = [np.full(100, number, dtype=np.uint8) for number in range(LANES)]
    expected = [hashlib.sha256(part).hexdigest() for part in memory]
    streams = [JointHash() for _ in memory]

    update_together([(one, part.data) for one, part in zip(streams, memory, strict=True)])
    for part in memory:
        part[:] = 255

    assert [one.hexdigest() for one in streams] == expected


def test_the_constants_are_those_of_the_roots_of_the_first_primes():
    """FIPS 180-4: 32 bits behind the point of cube roots of 64 primes, square roots of eight."""
    primes = [n for n in range(2, 312) if all(n % k for k in range(2, n))]

    assert [whole_root(p << 96, 3) % 2**32 for p in primes] == list(K)
    assert [whole_root(p << 64, 2) % 2**32 for p in primes[:8]] == list(INITIAL)


def whole_root(number: int, degree: int) -> int:
    """The largest whole number whose power is no more than `number`."""
    low, high = 0, 1 << 64
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**degree <= number else (low, middle)
    return low


def test_streams_more_than_lanes_leave_none_of_them_idle(compressor, monkeypatch):
    taken = list[int]()

    def noted(table: int, blocks: int) -> None:
        taken.append(blocks)
        compressor.compress(table, blocks)

    monkeypatch.setattr(joint_hash, "compressor", lambda: replace(compressor, compress=noted))
    streams = [JointHash() for _ in range(LANES + 2)]

    update_together([(one, bytes(64 * 80)) for one in streams])

    assert sum(taken) * compressor.lanes == 80 * len(streams)


@pytest.mark.parametrize(
    ("features", "way"),
    [
        ({"sha": True, "avx2": True, "avx512f": False}, sha256_instructions),
        ({"sha": True, "avx2": True, "avx512f": True}, sha256_vectors),
        ({"avx2": True}, sha256_vectors),
        ({}, sha256_vectors),
    ],
)
def test_the_way_is_chosen_by_what_the_processor_has(features, way, monkeypatch):
    monkeypatch.setattr(sha256.binding, "get_host_cpu_features", lambda: features)

    assert sha256.way() is way
