from dataclasses import replace

import pytest
import torch
from tiny_alignment import noisy_problem

from momacli.alignment.early_stop import EVERY, PATIENCE, hold_back
from momacli.alignment.fit import fit_alignment
from momacli.alignment.resume import Keeper
from momacli.alignment.settings import Settings
from momacli.errors import DataError
from momacli.progress import Notice, Progress

SETTINGS = Settings(steps=400, batch_size=4, mask_rate=0.5, early_stop=True)


def problem():
    """Few samples and teachers that are noise: what is learned of them helps with no others."""
    return noisy_problem({"one": 31, "two": 20})


def fitted(settings=SETTINGS, *, keeper=None, listener=lambda event: None):
    encoder, read_base, tasks = problem()
    found = fit_alignment(
        encoder, read_base, tasks, settings, headroom=2.0, keeper=keeper, listener=listener
    )
    return found, encoder


@pytest.fixture(scope="module")
def whole():
    """What is found without an interruption, the encoder as it is left, and all events."""
    events = []
    return *fitted(listener=events.append), events


def test_a_tenth_of_each_task_is_held_back_and_the_rest_learned_from():
    _, _, tasks = problem()

    learned, held, numbers = hold_back(tasks, seed=0)

    assert [task.count for task in held] == [3, 2]
    for task, one, other, those in zip(tasks, learned, held, numbers, strict=True):
        rows = torch.cat([part.batch(torch.arange(part.count))["x"] for part in (one, other)])
        everything = task.batch(torch.arange(task.count))["x"]
        assert sorted(rows.tolist()) == sorted(everything.tolist())
        assert torch.equal(one.finetuned, task.finetuned[those])
    others = hold_back(tasks, seed=1)[2]
    assert any(not torch.equal(a, b) for a, b in zip(numbers, others, strict=True))


def test_an_image_is_held_back_with_all_its_views():
    _, _, [task, *_] = problem()
    seen = replace(task, count=30, finetuned=task.finetuned[:30], views=3)  # of ten images

    [learned], [held], [numbers] = hold_back([seen], seed=0)

    assert (learned.count, held.count) == (27, 1)
    kept_apart = {int(number) % 10 for number in numbers}
    assert len(kept_apart) == 9
    [away] = set(range(10)) - kept_apart
    assert torch.equal(held.finetuned, task.finetuned[[away]])  # the image itself
    with pytest.raises(DataError, match="has one sample"):
        hold_back([replace(seen, count=3)], seed=0)


def test_a_task_of_one_sample_has_none_to_hold_back():
    _, _, tasks = problem()

    with pytest.raises(DataError, match="task one has one sample"):
        hold_back([replace(tasks[0], count=1)], seed=0)


def test_steps_end_soon_after_they_no_longer_help_and_the_best_is_taken_up(whole):
    found, encoder, events = whole

    done = [e.done for e in events if isinstance(e, Progress) and e.stage == "aligning"][-1]
    assert found.steps % EVERY == 0
    assert done == found.steps + PATIENCE * EVERY < SETTINGS.steps
    assert any("held back" in event.text for event in events if isinstance(event, Notice))
    exactly, _ = fitted(replace(SETTINGS, steps=found.steps))
    assert torch.equal(found.transforms, exactly.transforms)
    assert all(torch.equal(mask, exactly.masks[name]) for name, mask in found.masks.items())
    for name, value in encoder.parameters.items():
        merged = problem()[0].parameters[name]
        theta_0 = problem()[1](name)
        expected = theta_0 + 2.0 * found.masks[name] * (merged - theta_0)
        torch.testing.assert_close(value.detach(), expected)


@pytest.mark.parametrize("stop", [30, pytest.param(110, marks=pytest.mark.long)])
def test_a_run_that_was_interrupted_ends_with_the_same_bits(tmp_path, whole, stop):
    keeper = Keeper(tmp_path / "state", "key", every=0)

    def interrupt(event):
        if isinstance(event, Progress) and event.stage == "aligning" and event.done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(keeper=keeper, listener=interrupt)
    resumed, _ = fitted(keeper=keeper)

    assert resumed.steps == whole[0].steps
    assert torch.equal(resumed.transforms, whole[0].transforms)
    assert all(torch.equal(mask, whole[0].masks[name]) for name, mask in resumed.masks.items())


@pytest.mark.long
def test_a_state_that_was_kept_when_it_was_enough_does_no_further_step(tmp_path):
    keeper = Keeper(tmp_path / "state", "key", every=EVERY)
    whole, _ = fitted(keeper=keeper)
    events = []

    again, _ = fitted(keeper=keeper, listener=events.append)

    assert not [e for e in events if isinstance(e, Progress) and e.stage == "aligning"]
    assert torch.equal(again.transforms, whole.transforms)
