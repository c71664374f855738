import math

import pytest
import torch

from momacli.alignment.catalog import DEEP, feature_method, method_names
from momacli.alignment.encoding import TaskData
from momacli.alignment.on_features import fit_on_features
from momacli.alignment.resume import Keeper
from momacli.errors import DivergenceError
from momacli.models.interface import Head
from momacli.progress import Progress, ignore

METHODS = [name for name in method_names() if name not in {"moma", *DEEP}]
QUICK = {"steps": 60, "rate": 0.01}


class Turned:
    """An encoder whose merged features are its inputs."""

    def __init__(self):
        self.passes = 0
        self.parameters = {}
        self.buffers = {}

    def features(self, batch):
        self.passes += len(batch["x"])
        return batch["x"]


def tasks(names: str = "ab", count: int = 30) -> list[TaskData]:
    found = []
    for name in names:
        draw = torch.Generator().manual_seed(ord(name))
        x = torch.randn(count, 5, generator=draw)
        finetuned = x @ torch.linalg.qr(torch.randn(5, 5, generator=draw))[0]
        head = Head(torch.randn(3, 5, generator=draw), torch.zeros(3))
        found.append(TaskData(name, count, lambda i, x=x: {"x": x[i]}, finetuned, head))
    return found


@pytest.fixture
def fit(tmp_path):
    def run(method: str, given: list[TaskData], encoder=None, listener=ignore):
        keeper = Keeper(tmp_path / "state.safetensors", f"{method}{len(given)}", every=0)
        job = feature_method(method, QUICK)
        return fit_on_features(encoder or Turned(), given, job, keeper, listener)

    return run


@pytest.mark.parametrize("method", METHODS)
def test_every_task_counts_and_ends_nearer_to_its_expert(fit, method):
    outcome = fit(method, tasks("abc"))

    assert list(outcome.reports) == ["a", "b", "c"]
    for report in outcome.reports.values():
        assert report.objective_after < report.objective_before
    assert set(outcome.heads or outcome.adapters) == {"a", "b", "c"}


@pytest.mark.parametrize("method", METHODS)
def test_what_a_task_gets_does_not_depend_on_the_others(fit, method):
    together, alone = fit(method, tasks("abc")), fit(method, tasks("c"))

    assert torch.equal(together.logits["c"], alone.logits["c"])


@pytest.mark.parametrize("method", METHODS)
def test_the_merged_encoder_sees_every_sample_once(fit, method):
    encoder = Turned()
    fit(method, tasks(), encoder)

    assert encoder.passes == 2 * 30


def test_progress_counts_the_steps_of_all_tasks(fit):
    events = []
    fit("surgery", tasks(), listener=events.append)

    steps = [e for e in events if isinstance(e, Progress) and e.unit == "steps"]
    assert [(e.done, e.total) for e in steps] == [(50, 120), (60, 120), (110, 120), (120, 120)]


@pytest.mark.parametrize("method", METHODS)
def test_features_that_are_not_finite_are_named_before_any_step(fit, method):
    given = tasks()
    given[1].finetuned[0, 0] = math.nan

    with pytest.raises(DivergenceError, match="fine-tuned model's features of task b"):
        fit(method, given)
