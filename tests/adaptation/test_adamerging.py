import numpy as np
import pytest
import torch
from tiny_ensemble import entropy, logits_of, tiny_ensemble

from momacli.adaptation.adamerging import adamerging, with_coefficients
from momacli.errors import DivergenceError
from momacli.methods.task_arithmetic import task_arithmetic


def merged_by(ensemble, table):
    return {
        name: ensemble.base(name)
        + with_coefficients(ensemble.task_vectors(name), coefficients=table, name=name)
        for name in ensemble.tensors
    }


def total_entropy(ensemble, weights):
    tasks = range(len(ensemble.tasks))
    return float(sum(entropy(logits_of(ensemble, weights, t)) for t in tasks))


def test_with_coefficients_that_never_move_the_result_is_that_of_task_arithmetic():
    ensemble = tiny_ensemble()
    table = adamerging(ensemble, steps=0, lam=0.4)

    for name in ensemble.tensors:
        taus = ensemble.task_vectors(name)
        merged = with_coefficients(taus, coefficients=table, name=name)
        torch.testing.assert_close(merged, task_arithmetic(taus, lam=0.4))


@pytest.mark.parametrize("per", ["layer", "task"])
def test_the_coefficients_lower_the_entropy_of_all_tasks_together(per):
    before = total_entropy(
        tiny_ensemble(), merged_by(tiny_ensemble(), adamerging(tiny_ensemble(), steps=0))
    )
    table = adamerging(tiny_ensemble(), per=per, rate=0.02, steps=40)

    assert total_entropy(tiny_ensemble(), merged_by(tiny_ensemble(), table)) < 0.95 * before


def test_task_wise_a_task_has_one_coefficient_and_layer_wise_one_a_tensor():
    by_task = np.array(list(adamerging(tiny_ensemble(), per="task", rate=0.02, steps=5).values()))
    by_layer = np.array(list(adamerging(tiny_ensemble(), rate=0.02, steps=5).values()))

    assert np.ptp(by_task, axis=0).max() == 0
    assert np.ptp(by_layer, axis=0).min() > 0


def test_the_recorded_coefficients_make_the_weights_that_were_learned_with():
    ensemble = tiny_ensemble()
    table = adamerging(ensemble, rate=0.02, steps=10)
    again = tiny_ensemble()

    # the last step moved lambda once more than it was placed, so place them as they are now
    placed = {name: again.base(name) for name in again.tensors}
    for name, column in table.items():
        placed[name] += torch.tensordot(torch.tensor(column), again.task_vectors(name), dims=1)
    for name, weights in merged_by(again, table).items():
        torch.testing.assert_close(weights, placed[name])


def test_the_same_seed_gives_the_same_coefficients_and_another_seed_others():
    first, again = (adamerging(tiny_ensemble(), steps=5, batch_size=4) for _ in range(2))
    other = adamerging(tiny_ensemble(seed=1), steps=5, batch_size=4)

    assert first == again
    assert first != other


def test_running_statistics_are_merged_with_the_coefficients_of_the_start():
    ensemble = tiny_ensemble(
        lambda: torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4))
    )
    table = adamerging(ensemble, lam=0.2, rate=0.02, steps=5)

    assert table["1.running_mean"] == [0.2, 0.2, 0.2]
    assert table["1.weight"] != [0.2, 0.2, 0.2]
    expected = ensemble.base("1.running_mean")
    expected += 0.2 * ensemble.task_vectors("1.running_mean").sum(dim=0)
    torch.testing.assert_close(ensemble.network.buffers["1.running_mean"], expected)


def test_a_loss_that_is_not_finite_names_step_and_task():
    broken = [torch.randn(8, 6), torch.full((8, 6), torch.nan), torch.randn(8, 6)]

    with pytest.raises(DivergenceError, match="step 1: the entropy of task1 is not finite"):
        adamerging(tiny_ensemble(inputs=broken), steps=2)
