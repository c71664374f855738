"""Alignments on another device than the processor, which is only pretended here."""

from dataclasses import replace

import pytest
import torch
from pretended_device import DEVICE, PretendedDevice
from tiny_alignment import noisy_problem

from momacli.alignment.fit import fit_alignment
from momacli.alignment.settings import Settings, paper
from momacli.models.interface import Head

QUICK = Settings(steps=12, batch_size=8)


def fitted(settings: Settings, device: torch.device | None = None):
    network, read_base, tasks = noisy_problem({"one": 40, "two": 7})
    if device is not None:
        network.module.to(device)
        network.parameters = dict(network.module.named_parameters())
        tasks = [
            replace(
                task,
                batch=lambda i, task=task: {k: v.to(device) for k, v in task.batch(i).items()},
                finetuned=task.finetuned.to(device),
                head=Head(task.head.weight.to(device), None),
            )
            for task in tasks
        ]
    return fit_alignment(network, read_base, tasks, settings, headroom=2.0)


@pytest.fixture(autouse=True)
def parameters_become_others_when_moved():
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(False)


def test_the_closed_form_is_that_of_the_processor():
    settings = replace(QUICK, mask="none")
    here = fitted(settings)

    with PretendedDevice():
        there = fitted(settings, DEVICE).transforms
        brought_back = there.cpu()

    assert there.device == DEVICE
    # torch takes other steps for pretended tensors, which on some processors round differently
    torch.testing.assert_close(brought_back, here.transforms, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        QUICK,
        paper(QUICK),
        replace(QUICK, transform="linear"),
        replace(QUICK, objective="features"),
        replace(QUICK, early_stop=True, steps=30),
    ],
    ids=["default", "paper", "linear", "features", "early stop"],
)
def test_no_step_needs_a_tensor_of_the_processors(settings, monkeypatch):
    """What is learned is not compared: torch does not add gradients of pretended tensors up."""
    monkeypatch.setattr("momacli.features.seen.STEPS", 3)  # each the same, and slow here
    monkeypatch.setattr("momacli.features.seen.STEPS_ON", 2)
    with PretendedDevice() as device:
        there = fitted(settings, DEVICE)

    assert there.transforms.device == there.objective_after.device == DEVICE
    assert all(mask.device.type == "cpu" for mask in there.masks.values())
    assert device.calls > 1000
