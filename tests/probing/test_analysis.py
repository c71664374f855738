from dataclasses import replace

import pytest
import torch

from momacli.data.shots import Shots, two_parts
from momacli.models.interface import Head
from momacli.probing.analysis import TaskProbe
from momacli.probing.features import TaskFeatures
from momacli.probing.settings import Settings

QUICK = Settings(shots=(Shots(1), Shots(share=0.5)), draws=2, steps=20, points=40)


def task(*, noise: float = 0.0, turned: bool = True) -> TaskFeatures:
    """Three classes around their head's rows; the merged features are turned away from it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    rows = 4 * torch.eye(3, 5)
    finetuned = rows[labels] + 0.3 * torch.randn(90, 5, generator=generator)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    merged = finetuned @ (rotation if turned else torch.eye(5))
    merged = merged + noise * torch.randn(90, 5, generator=generator)
    head = Head(rows, None)
    return TaskFeatures("t", merged, finetuned, labels, 3, head, head)


@pytest.fixture(scope="module")
def found():
    return TaskProbe(task(), QUICK).findings()[0]


def test_a_turned_merge_gets_its_accuracy_back_from_an_orthogonal_map(found):
    assert found.finetuned.accuracy == 1
    assert found.merged.accuracy < 0.9
    orthogonal = found.families["orthogonal"]
    assert orthogonal.accuracy.accuracy == 1
    assert max(orthogonal.error, orthogonal.error_fitted) < 1e-10
    assert found.agreement["orthogonal"].cosine.low == pytest.approx(1, abs=1e-5)
    assert found.agreement["orthogonal"].coefficient.mean == pytest.approx(1, abs=1e-5)
    assert found.families["raw"].accuracy == found.merged


def test_what_a_turn_does_not_touch_is_seen_by_the_neighbours(found):
    assert found.knn["1"].mean == 1
    assert (found.knn["1"].support, found.knn["50%"].support) == (3, 24)


def test_no_sample_is_both_fitted_on_and_evaluated():
    features = task(noise=0.5)
    first, second = two_parts(features.labels.tolist(), 0.5, seed=0, task="t")
    spoilt = features.finetuned.clone()
    spoilt[second] = torch.randn(len(second), 5, generator=torch.Generator().manual_seed(1))

    honest = TaskProbe(features, QUICK).findings()[0]
    other = TaskProbe(replace(features, finetuned=spoilt), QUICK).findings()[0]

    for name, fit in honest.families.items():
        assert other.families[name].error_fitted == pytest.approx(fit.error_fitted)
        assert other.families[name].accuracy == fit.accuracy
    assert (honest.fitted, honest.evaluated) == (len(first), len(second))


def test_transductive_fits_where_it_evaluates():
    found = TaskProbe(task(noise=0.5), replace(QUICK, transductive=True))

    for fit in found.findings()[0].families.values():
        assert fit.error_fitted == fit.error
        assert fit.distance_fitted == fit.distance


def test_aligned_c_learns_from_answers_and_not_from_labels():
    features = task(turned=False)
    wrong = replace(features, labels=(features.labels + 1) % 3)

    right, misled = (TaskProbe(one, QUICK).findings()[0] for one in (features, wrong))

    assert right.aligned_c["50%"].mean == 1
    assert misled.aligned_c["50%"].mean == 0  # its answers are still the fine-tuned model's
    assert misled.knn["50%"].mean == 1  # while neighbours say what they are labeled with


def test_the_same_seed_gives_the_same_findings_and_another_chooses_others():
    one, two, other = (
        TaskProbe(task(noise=1.5), replace(QUICK, seed=seed)).findings()[0] for seed in (0, 0, 1)
    )

    assert one == two
    assert one != other


def test_some_of_each_class_have_places_in_the_plane():
    places = TaskProbe(task(), QUICK).places()

    assert places is not None
    assert places.labels.bincount().tolist() == [13, 13, 13]
    assert len(places.finetuned) == len(places.merged) == len(places.aligned) == 39


def test_an_aligned_models_own_head_counts_for_it_and_the_experts_for_the_maps():
    features = task()
    own = Head(features.head.weight.flip(0), None)  # wrong for two of three classes

    aligned = replace(features, merged=features.finetuned, merged_head=own)
    found = TaskProbe(aligned, QUICK).findings()[0]

    assert found.merged.accuracy < 0.5
    assert found.families["raw"].accuracy.accuracy == 1
