import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tiny_alignment import noisy_problem

from momacli.alignment.fit import fit_alignment
from momacli.alignment.resume import Keeper, state_key
from momacli.alignment.settings import Settings
from momacli.progress import Notice, Progress


def fitted(settings, *, keeper=None, listener=lambda event: None):
    problem = noisy_problem({"one": 40, "two": 40})
    return fit_alignment(*problem, settings, headroom=2.0, keeper=keeper, listener=listener)


def same(first, second) -> bool:
    masks = all(torch.equal(mask, second.masks[name]) for name, mask in first.masks.items())
    return masks and torch.equal(first.transforms, second.transforms)


@pytest.fixture(params=["orthogonal", "linear", "penalty"])
def settings(request):
    return Settings(steps=23, batch_size=8, solve_every=4, transform=request.param)


@pytest.mark.parametrize("stop", [1, 7, 8, 22])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, settings, stop):
    keeper = Keeper(tmp_path / "state", "key", every=0)

    def interrupt(event):
        if isinstance(event, Progress) and event.stage == "aligning" and event.done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(settings, keeper=keeper, listener=interrupt)
    events = []
    resumed = fitted(settings, keeper=keeper, listener=events.append)

    steps = [e.done for e in events if isinstance(e, Progress) and e.stage == "aligning"]
    assert steps == list(range(stop + 1, 24))
    assert same(resumed, fitted(settings))


def run_and_be_killed(path: str) -> None:
    """Begin the run of the test below in a process of its own, and die after 15 steps."""

    def die(event):
        if isinstance(event, Progress) and event.stage == "aligning" and event.done == 15:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = Settings(steps=20, batch_size=8)
    fitted(settings, keeper=Keeper(Path(path), "key", every=6), listener=die)


def test_a_run_that_is_killed_loses_no_more_than_the_steps_since_the_last_state(tmp_path):
    keeper = Keeper(tmp_path / "state", "key", every=6)
    code = "import sys; sys.path[:0] = sys.argv[1:3]; import test_resume as this; "
    code += "this.run_and_be_killed(sys.argv[3])"
    here = Path(__file__).parent
    command = [sys.executable, "-c", code, str(here), str(here.parent), str(keeper.path)]
    done = subprocess.run(command, check=False, timeout=100)

    settings = Settings(steps=20, batch_size=8)
    assert done.returncode == -signal.SIGKILL
    assert keeper.load()[0] == 12
    assert same(fitted(settings, keeper=keeper), fitted(settings))


def test_the_state_of_another_run_or_a_damaged_one_is_not_used_and_says_so(tmp_path):
    settings = Settings(steps=5, batch_size=8)
    events = []
    keeper = Keeper(tmp_path / "state", "key", every=2, listener=events.append)
    fitted(settings, keeper=keeper)
    assert keeper.load()[0] == 4

    assert replace(keeper, key="other").load() is None
    keeper.path.write_bytes(keeper.path.read_bytes()[:-5])
    assert keeper.load() is None
    assert [type(event) for event in events] == [Notice, Notice]
    assert same(fitted(settings, keeper=keeper), fitted(settings))


def test_the_key_changes_with_settings_weights_and_features():
    features = [torch.ones(2, 3)]
    key = state_key(asdict(Settings()), {"a": "1"}, features)

    assert key == state_key(asdict(Settings()), {"a": "1"}, [torch.ones(2, 3)])
    assert key != state_key(asdict(Settings(seed=1)), {"a": "1"}, features)
    assert key != state_key(asdict(Settings()), {"a": "2"}, features)
    assert key != state_key(asdict(Settings()), {"a": "1"}, [torch.zeros(2, 3)])
