"""Loops that Numba compiles once, and that run without it from then on."""

import sys
from pathlib import Path

import numpy as np
import pytest

from momacli.compiled.kept_loop import KeptLoop, scratch

SIZE = 4


def scale_by_parts(values: np.ndarray, factor: float, scaled: np.ndarray) -> int:
    """Multiply, with a detour over a part of the memory at a time; returns how many are above 2."""
    part = scratch(SIZE, np.float32)
    above = 0
    for start in range(0, values.shape[0], SIZE):
        size = min(SIZE, values.shape[0] - start)
        for i in range(size):
            part[i] = times(values[start + i], factor)
        for i in range(size):
            scaled[start + i] = part[i]
            above += part[i] > 2
    return above


def times(value: float, factor: float) -> float:
    return value * factor


def make_an_array(values: np.ndarray) -> int:
    made = np.empty(1)
    made[0] = values[0] + values[1]
    return int(made[0])


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder for what is compiled here."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(place))
        yield place


def test_a_loop_runs_as_it_is_written_and_later_without_numba(monkeypatch):
    values, scaled = np.arange(10, dtype=np.float32), np.zeros(10, np.float32)
    above = KeptLoop(scale_by_parts)(values, 0.5, scaled)
    again = np.zeros(10, np.float32)
    monkeypatch.setitem(sys.modules, "numba", None)  # whose import fails now
    later = KeptLoop(scale_by_parts)(values, 0.5, again)

    assert above == later == 5
    assert scaled.tolist() == again.tolist() == (values / 2).tolist()


def test_a_loop_whose_code_cannot_stand_alone_is_run_by_numba(cache):
    known = set(cache.rglob("make_an_array*"))

    assert KeptLoop(make_an_array)(np.arange(4.0)) == 1
    assert set(cache.rglob("make_an_array*")) == known == set()


@pytest.mark.parametrize(
    "argument", [np.zeros((3, 2))[:, 0], "text", None], ids=["not contiguous", "text", "nothing"]
)
def test_arguments_that_the_code_would_misread_are_refused(argument):
    with pytest.raises(TypeError):
        KeptLoop(make_an_array)(argument)
