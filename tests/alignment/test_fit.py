from dataclasses import replace

import pytest
import torch
from tiny_alignment import Network
from torch import nn

from momacli.alignment.encoding import TaskData, encode_all
from momacli.alignment.fit import fit_alignment
from momacli.alignment.objectives import logit_divergence
from momacli.alignment.resume import Keeper
from momacli.alignment.settings import Settings, paper
from momacli.errors import DivergenceError, OutOfMemoryError, UsageError
from momacli.features.procrustes import orthogonality_error
from momacli.models.interface import Head
from momacli.progress import Notice, Progress


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8))


@pytest.fixture
def problem():
    """Two experts of one base, merged by task arithmetic; returns a maker of fresh copies."""
    base = network(0).state_dict()
    experts = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        experts.append(
            {k: v + 0.3 * torch.randn(v.shape, generator=generator) for k, v in base.items()}
        )
    merged = {k: v + 0.5 * sum(e[k] - v for e in experts) for k, v in base.items()}

    def make():
        encoder = Network(network(0))
        encoder.module.load_state_dict(merged)
        tasks = []
        for number, expert in enumerate(experts):
            generator = torch.Generator().manual_seed(10 + number)
            x = torch.randn(64, 6, generator=generator)
            teacher = network(0)
            teacher.load_state_dict(expert)
            head = Head(torch.randn(4, 8, generator=generator), torch.zeros(4))
            tasks.append(
                TaskData(
                    f"task{number}",
                    64,
                    lambda indices, x=x: {"x": x[indices]},
                    teacher(x).detach(),
                    head,
                )
            )
        return encoder, base.__getitem__, tasks

    return make


@pytest.mark.parametrize("objective", ["both", "logits", "features"])
def test_mask_and_transforms_together_fit_better_than_transforms_alone(problem, objective):
    settings = Settings(steps=60, objective=objective)
    alone = fit_alignment(*problem(), replace(settings, mask="none"), headroom=1.0)
    fitted = fit_alignment(*problem(), settings, headroom=2.0)

    assert fitted.objective_after.sum() < 0.8 * alone.objective_after.sum()
    assert orthogonality_error(fitted.transforms).max() < 1e-5
    factors = torch.cat([2.0 * mask.flatten() for mask in fitted.masks.values()])
    assert fitted.masked_share == pytest.approx(float((factors < 0.5).double().mean()))
    assert 0 < fitted.masked_share < 1


@pytest.mark.parametrize("transform", ["similarity", "scaling", "linear"])
def test_other_families_lower_the_objective_from_their_own_closed_form(problem, transform):
    settings = Settings(steps=30, transform=transform)
    alone = fit_alignment(*problem(), replace(settings, mask="none"), headroom=1.0)
    fitted = fit_alignment(*problem(), settings, headroom=2.0)

    assert fitted.objective_after.sum() < alone.objective_after.sum()


def test_the_encoder_is_left_with_the_masked_weights(problem):
    encoder, read_base, tasks = problem()
    merged = {name: value.detach().clone() for name, value in encoder.parameters.items()}
    fitted = fit_alignment(encoder, read_base, tasks, Settings(steps=20), headroom=2.0)

    for name, value in encoder.parameters.items():
        theta_0 = read_base(name)
        expected = theta_0 + 2.0 * fitted.masks[name] * (merged[name] - theta_0)
        torch.testing.assert_close(value.detach(), expected)


def test_without_a_mask_the_weights_stay_and_the_closed_form_is_exact(problem):
    encoder, read_base, tasks = problem()
    merged = {name: value.detach().clone() for name, value in encoder.parameters.items()}
    settings = Settings(mask="none", objective="features", prior=0.0)
    fitted = fit_alignment(encoder, read_base, tasks, settings, headroom=1.0)

    assert fitted.masks == {}
    assert fitted.steps == 0
    assert all(torch.equal(value, merged[name]) for name, value in encoder.parameters.items())
    u, _, vh = torch.linalg.svd(tasks[0].finetuned.mT @ fitted.features_before[0])
    torch.testing.assert_close(fitted.transforms[0], u @ vh, atol=1e-5, rtol=0)


def test_rotations_are_fitted_to_what_heads_see_first(problem):
    _, _, tasks = problem()
    seen, whole = (
        fit_alignment(*problem(), Settings(mask="none", objective=objective), headroom=1.0)
        for objective in ("both", "features")
    )

    def divergence(fitted):
        pairs = zip(fitted.features_after, fitted.transforms, tasks, strict=True)
        return sum(logit_divergence(z @ A.mT, t.finetuned, t.head).item() for z, A, t in pairs)

    assert orthogonality_error(seen.transforms).max() < 1e-5
    assert divergence(seen) < 0.9 * divergence(whole)


@pytest.mark.parametrize("mask", ["element", "none"])
def test_a_prior_worth_more_than_all_samples_keeps_features_as_they_are(problem, mask):
    settings = Settings(steps=20, mask=mask, prior=1e9)

    fitted = fit_alignment(*problem(), settings, headroom=2.0)

    torch.testing.assert_close(fitted.transforms, torch.eye(8).expand(2, 8, 8), atol=1e-5, rtol=0)


def test_of_few_samples_a_prior_finds_what_holds_for_others(problem):
    encoder, read_base, tasks = problem()
    few = torch.arange(4)
    shown = [replace(task, count=4, finetuned=task.finetuned[few]) for task in tasks]
    merged = encode_all(encoder, tasks, "all")

    def error(prior):
        settings = Settings(mask="none", objective="features", prior=prior)
        found = fit_alignment(encoder, read_base, shown, settings, headroom=1.0)
        pairs = zip(merged, found.transforms, tasks, strict=True)
        return sum(
            float((z_m[4:] @ A.mT - task.finetuned[4:]).square().sum()) for z_m, A, task in pairs
        )

    assert error(Settings().prior) < error(1e9) < error(0.0)


def test_the_objective_never_ends_above_its_start_even_with_an_absurd_rate(problem):
    settings = Settings(steps=3, mask_rate=1e4)

    fitted = fit_alignment(*problem(), settings, headroom=2.0)

    closed = fit_alignment(*problem(), replace(settings, mask="none"), headroom=1.0)
    assert fitted.objective_after.sum() <= closed.objective_after.sum()


def test_the_papers_recipe_lowers_its_objective_with_nearly_orthogonal_matrices(problem):
    fitted = fit_alignment(*problem(), paper(Settings(steps=150)), headroom=1.0)

    assert fitted.objective_after.sum() < fitted.objective_before.sum()
    assert 1e-6 < orthogonality_error(fitted.transforms).max() < 0.5


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(problem):
    settings = Settings(steps=10)
    first, second = (fit_alignment(*problem(), settings, headroom=2.0) for _ in range(2))
    other = fit_alignment(*problem(), replace(settings, seed=1), headroom=2.0)

    assert all(torch.equal(mask, second.masks[name]) for name, mask in first.masks.items())
    assert torch.equal(first.transforms, second.transforms)
    assert any(not torch.equal(mask, other.masks[name]) for name, mask in first.masks.items())


def test_in_half_precision_only_the_steps_of_the_encoder_are_so(problem):
    encoder, read_base, tasks = problem()
    computed = {}

    def note(module, _inputs, output):
        computed.setdefault(len(output), set()).add(output.dtype)

    encoder.module[0].register_forward_hook(note)
    settings = Settings(steps=60, batch_size=16, precision="bfloat16")
    half = fit_alignment(encoder, read_base, tasks, settings, headroom=2.0)
    whole = fit_alignment(*problem(), replace(settings, precision="float32"), headroom=2.0)

    assert computed == {64: {torch.float32}, 32: {torch.bfloat16}}  # passes over all, and steps
    kept = [*half.masks.values(), half.transforms, *half.features_after]
    assert {value.dtype for value in kept} == {torch.float32}
    assert orthogonality_error(half.transforms).max() < 1e-5
    gained = [one.objective_before.sum() - one.objective_after.sum() for one in (half, whole)]
    assert gained[0] > 0.9 * gained[1]


def test_every_step_is_one_forward_pass_over_all_tasks(problem):
    encoder, read_base, tasks = problem()
    sizes = []
    inner = encoder.features
    encoder.features = lambda batch: sizes.append(len(batch["x"])) or inner(batch)
    fit_alignment(encoder, read_base, tasks, Settings(steps=7, batch_size=5), headroom=2.0)

    assert sizes.count(10) == 7  # steps: both tasks together
    assert sum(sizes) == 7 * 10 + 2 * 128  # and one pass over all samples before and after


def test_every_sample_is_seen_once_before_any_comes_twice(problem):
    encoder, read_base, tasks = problem()
    seen = []
    inner = tasks[0].batch
    tasks[0] = replace(tasks[0], batch=lambda i: seen.extend(i.tolist()) or inner(i))
    fit_alignment(encoder, read_base, tasks, Settings(steps=4, batch_size=16), headroom=2.0)

    assert sorted(seen[64 : 64 + 64]) == list(range(64))  # after the pass for the start


def test_progress_carries_the_loss_of_each_task_the_masked_share_and_the_samples(problem):
    events = []
    settings = Settings(steps=20, batch_size=5)
    fitted = fit_alignment(*problem(), settings, headroom=2.0, listener=events.append)

    steps = [e for e in events if isinstance(e, Progress) and e.stage == "aligning"]
    assert [event.done for event in steps] == list(range(1, 21))
    assert [event.samples for event in steps] == [10 * done for done in range(1, 21)]
    assert all(set(event.values) == {"task0", "task1", "masked share"} for event in steps)
    assert steps[0].values["masked share"] == 0  # it starts where half of the headroom is
    assert steps[-1].values["masked share"] == fitted.masked_share
    assert fitted.samples_per_second > 0


def test_a_loss_that_is_not_finite_stops_with_step_and_task(problem):
    encoder, read_base, tasks = problem()
    calls = []
    inner = tasks[1].batch

    def breaking(indices):
        calls.append(indices)
        return {"x": inner(indices)["x"] / (0.0 if len(calls) == 1 + 3 else 1.0)}

    tasks[1] = replace(tasks[1], batch=breaking)

    with pytest.raises(DivergenceError, match="step 3: the loss of task1"):
        fit_alignment(encoder, read_base, tasks, Settings(steps=5), headroom=2.0)


def test_features_that_are_not_finite_are_refused_before_any_step(problem):
    encoder, read_base, tasks = problem()
    tasks[0] = replace(tasks[0], finetuned=tasks[0].finetuned * torch.nan)

    with pytest.raises(DivergenceError, match="fine-tuned model's features of task task0"):
        fit_alignment(encoder, read_base, tasks, Settings(steps=5), headroom=2.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"batch_size": "all"},
        {"headroom": -1.0},
        {"headroom": 1.0, "start": "merged"},
        {"mask": "rows"},
        {"precision": "half"},
        {"objective": "answers"},
        {"prior": -1.0},
        {"prior": float("nan")},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(UsageError):
        Settings(**wrong)


NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"


def with_memory_for(encoder, samples, *, error=RuntimeError, message=NO_MEMORY, sizes=None):
    """Let an encoder have no memory for more samples at a time, as a device would say it."""
    inner = encoder.features

    def features(batch):
        if sizes is not None:
            sizes.append(len(batch["x"]))
        if len(batch["x"]) > samples:
            raise error(message)
        return inner(batch)

    encoder.features = features
    return encoder


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_step_that_does_not_fit_names_the_batch_size_and_the_option(problem, error):
    encoder, read_base, tasks = problem()
    with_memory_for(encoder, 20, error=error)

    with pytest.raises(OutOfMemoryError) as caught:
        fit_alignment(encoder, read_base, tasks, Settings(steps=2), headroom=2.0)
    assert "--batch-size 16: 32 samples of 2 tasks" in caught.value.message
    assert "--batch-size 8" in caught.value.hint
    assert "--batch-size auto" in caught.value.hint


def test_other_errors_of_a_step_are_not_taken_for_a_lack_of_memory(problem):
    encoder, read_base, tasks = problem()
    with_memory_for(encoder, 20, message="no kernel image is available")

    with pytest.raises(RuntimeError, match="no kernel image"):
        fit_alignment(encoder, read_base, tasks, Settings(steps=2), headroom=2.0)


def test_a_batch_size_that_is_found_gives_what_the_same_number_gives(problem):
    settings = Settings(steps=6, batch_size="auto")
    encoder, read_base, tasks = problem()
    events, sizes = [], []
    with_memory_for(encoder, 10, sizes=sizes)
    found = fit_alignment(encoder, read_base, tasks, settings, headroom=2.0, listener=events.append)

    encoder, read_base, tasks = problem()
    with_memory_for(encoder, 10)  # the passes over all samples, in parts as small
    named = fit_alignment(encoder, read_base, tasks, replace(settings, batch_size=4), headroom=2.0)
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert found.batch_size == 4
    assert torch.equal(found.transforms, named.transforms)
    assert all(torch.equal(mask, named.masks[name]) for name, mask in found.masks.items())
    assert [size for size in sizes if size in (32, 16)].count(32) == 1 + 2 * 1
    assert sum("--batch-size" in text for text in notices) == 2


def test_a_device_that_cannot_hold_one_sample_is_an_error(problem):
    encoder, _, tasks = problem()

    with pytest.raises(OutOfMemoryError, match="merged features"):
        encode_all(with_memory_for(encoder, 0), tasks, "merged features")


def test_where_memory_is_short_features_come_in_smaller_parts(problem):
    encoder, _, tasks = problem()
    whole = encode_all(encoder, tasks, "all")
    events, sizes = [], []
    with_memory_for(encoder, 16, sizes=sizes)

    parts = encode_all(encoder, tasks, "all", events.append)

    assert sizes == [64, 32] + [16] * 8
    torch.testing.assert_close(parts, whole)
    assert [e.text for e in events if isinstance(e, Notice)] == [
        "all: memory is short; 32 samples at a time",
        "all: memory is short; 16 samples at a time",
    ]


def test_a_run_that_found_its_batch_size_goes_on_with_it(problem, tmp_path):
    settings = Settings(steps=6, batch_size="auto")
    keeper = Keeper(tmp_path / "state", "key", every=0)

    def run(listener, sizes=None):
        encoder, read_base, tasks = problem()
        with_memory_for(encoder, 20, sizes=sizes)
        return fit_alignment(
            encoder, read_base, tasks, settings, headroom=2.0, keeper=keeper, listener=listener
        )

    def interrupt(event):
        if isinstance(event, Progress) and event.stage == "aligning" and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupt)
    sizes = []
    resumed = run(lambda event: None, sizes)
    keeper.discard()

    assert resumed.batch_size == 8
    assert torch.equal(resumed.transforms, run(lambda event: None).transforms)
    assert sizes.count(16) == 8 + 3 + 8  # steps left, between the passes over all samples
