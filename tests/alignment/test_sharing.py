"""Two processes that fit one alignment together, against one that does it alone."""

import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed
from tiny_alignment import noisy_problem

from momacli.alignment.encoding import encode_all
from momacli.alignment.fit import fit_alignment
from momacli.alignment.resume import Keeper
from momacli.alignment.settings import Settings
from momacli.alignment.sharing import ALONE, part_of
from momacli.errors import OutOfMemoryError
from momacli.merging.ranks import Ranks
from momacli.progress import Progress
from momacli.signals import stopped_by_signals


def problem():
    """An encoder of 95 parameters, which two processes cannot halve, and tasks of odd sizes."""
    return noisy_problem({"one": 143, "two": 7}, inner=9)


def fitted(settings, ranks=ALONE, keeper=None, encoder=None):
    """The losses of all steps, the masks and the transforms."""
    network, read_base, tasks = problem()
    events = []
    found = fit_alignment(
        encoder(network) if encoder else network,
        read_base,
        tasks,
        settings,
        headroom=2.0,
        keeper=keeper,
        ranks=ranks,
        listener=events.append,
    )
    steps = [e for e in events if isinstance(e, Progress) and e.stage == "aligning"]
    return [event.values for event in steps], dict(found.masks), found.transforms


def in_two_processes(work: Callable[[Ranks], object], folder: Path) -> list:
    """What each of two processes makes of the work, in their order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking beside threads
        processes = multiprocessing.get_context("fork")
        children = [
            processes.Process(target=take_part, args=(work, number, folder)) for number in (0, 1)
        ]
        for child in children:
            child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in (0, 1)]


def take_part(work: Callable[[Ranks], object], number: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2
    )
    torch.save(work(Ranks(number, 2)), folder / f"{number}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)  # without what the tests' own process has to clean up


@pytest.mark.parametrize(
    "transform", ["orthogonal", pytest.param("penalty", marks=pytest.mark.long)]
)
def test_two_processes_have_the_losses_of_one_and_the_same_result(tmp_path, transform):
    settings = Settings(steps=25, batch_size=9, transform=transform, solve_every=4)

    losses, masks, transforms = fitted(settings)
    both = in_two_processes(lambda ranks: fitted(settings, ranks), tmp_path)

    for theirs, mask, transform in both:
        for step, expected in zip(theirs, losses, strict=True):
            assert step == pytest.approx(expected, rel=1e-4)
        torch.testing.assert_close(transform, transforms, atol=1e-4, rtol=1e-4)
        for name, values in masks.items():
            torch.testing.assert_close(mask[name], values, atol=1e-3, rtol=1e-3)
    assert all(torch.equal(both[0][1][name], both[1][1][name]) for name in masks)
    assert torch.equal(both[0][2], both[1][2])


def test_a_state_of_two_processes_is_taken_up_by_one(tmp_path):
    settings = Settings(steps=12, batch_size=8)
    keeper = Keeper(tmp_path / "state", "key", every=9)

    def work(ranks):
        return fitted(settings, ranks, replace(keeper, writes=ranks.number == 0))

    in_two_processes(work, tmp_path)
    resumed, masks, _ = fitted(settings, keeper=keeper)
    losses, expected, _ = fitted(settings)

    assert len(resumed) == 3
    assert resumed[-1] == pytest.approx(losses[-1], rel=1e-3)
    for name, values in masks.items():
        torch.testing.assert_close(values, expected[name], atol=1e-3, rtol=1e-3)


def test_processes_of_which_one_is_asked_to_end_stop_after_the_same_step(tmp_path):
    settings = Settings(steps=12, batch_size=8)
    keeper = Keeper(tmp_path / "state", "key", every=0)

    def work(ranks):
        def signalled(network):
            inner, seen = network.features, []

            def features(batch):
                seen.append(batch)
                if ranks.number == 1 and torch.is_grad_enabled() and len(seen) >= 5:
                    signal.raise_signal(signal.SIGTERM)
                return inner(batch)

            network.features = features
            return network

        own = replace(keeper, writes=ranks.number == 0)
        with stopped_by_signals(), pytest.raises(KeyboardInterrupt):
            fitted(settings, ranks, own, encoder=signalled)
        return ranks.number

    in_two_processes(work, tmp_path)
    step, _ = keeper.load()
    resumed, masks, _ = fitted(settings, keeper=keeper)
    losses, expected, _ = fitted(settings)

    assert 0 < step < 12
    assert len(resumed) == 12 - step
    assert resumed[-1] == pytest.approx(losses[-1], rel=1e-3)
    for name, values in masks.items():
        torch.testing.assert_close(values, expected[name], atol=1e-3, rtol=1e-3)


def test_features_of_all_samples_are_the_bits_of_one_process(tmp_path):
    def work(ranks):
        encoder, _, tasks = problem()
        return encode_all(encoder, tasks, "all", ranks=ranks)

    both = in_two_processes(work, tmp_path)
    encoder, _, tasks = problem()
    alone = encode_all(encoder, tasks, "all")

    for theirs in both:
        assert all(torch.equal(found, z_m) for found, z_m in zip(theirs, alone, strict=True))


def test_where_one_process_has_too_little_memory_all_take_smaller_batches(tmp_path):
    def work(ranks):
        def short(network):
            inner = network.features

            def features(batch):
                if ranks.number == 1 and 9 < len(batch["x"]) < 15:
                    raise torch.OutOfMemoryError
                return inner(batch)

            network.features = features
            return network

        found = fitted(Settings(steps=4, batch_size="auto"), ranks, encoder=short)
        try:
            fitted(Settings(steps=4, batch_size=16), ranks, encoder=short)
        except OutOfMemoryError:
            return found
        raise AssertionError

    both = in_two_processes(work, tmp_path)
    losses, _, _ = fitted(Settings(steps=4, batch_size=8))

    for theirs, _, _ in both:
        assert theirs[-1] == pytest.approx(losses[-1], rel=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_parts_follow_one_another_and_differ_by_one_at_most(count):
    parts = [part_of(7, Ranks(number, count)) for number in range(count)]

    assert [item for part in parts for item in range(7)[part]] == list(range(7))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.fixture
def merged(tmp_path, monkeypatch, vit_folders, vit_images):
    """A folder with a merged model and samples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    experts = [str(path) for path in sorted(vit_folders.iterdir()) if path.name != "base"]
    merge = ["merge", *experts, "--base", str(vit_folders / "base"), "-o", "merged"]
    subprocess.run([sys.executable, "-m", "momacli", *merge], check=True, capture_output=True)
    (tmp_path / "unlabeled").symlink_to(vit_images / "unlabeled")
    return tmp_path


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--standalone", "-m", "momacli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_torchrun_writes_one_output_that_does_what_that_of_one_process_does(merged):
    from safetensors.torch import load_file

    align = ["align", "--data", "unlabeled", "--steps", "12", "--batch-size", "8"]
    both = torchrun(*align, "--cache", "fresh", "-o", "two")
    alone = subprocess.run(
        [sys.executable, "-m", "momacli", *align, "-o", "one"], capture_output=True, check=True
    )

    assert both.returncode == 0, both.stderr
    assert (both.stdout, alone.stdout) == ("two\n", b"one\n")
    assert both.stderr.count("aligned 3 tasks") == 1
    one, two = (load_file(f"{name}/alignment.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-2, rtol=0)
    assert not [path for path in merged.iterdir() if path.name.startswith((".", "two."))]


@pytest.mark.long
def test_a_mistake_of_all_processes_is_said_once(merged):
    (merged / "broken").mkdir()
    both = torchrun("align", "--data", "broken", "-o", "two")

    assert both.returncode != 0
    assert both.stderr.count("error: ") == 1
    assert not (merged / "two").exists()


@pytest.mark.long
def test_a_failure_of_the_first_process_is_said_once_and_without_a_traceback_of_others(merged):
    (merged / "two").mkdir()
    (merged / "two" / "mine.txt").write_text("kept")
    align = ["align", "--data", "unlabeled", "--mask-rate", "nan", "--steps", "3"]

    both = torchrun(*align, "-o", "three")

    assert both.returncode != 0
    assert both.stderr.count("error: ") == 1, both.stderr
    assert "momacli/cli/main.py" not in both.stderr
    assert not (merged / "three").exists()
