import numpy as np
import pytest
import torch
from tiny_ensemble import tiny_ensemble
from torch import nn

from momacli.errors import DivergenceError
from momacli.statistics.regmean import regmean


def inputs_of_layers(ensemble, t):
    """What the two layers of a perceptron take in expert t, written out."""
    task = ensemble.tasks[t]
    x = task.batch(torch.arange(task.count))["x"]
    weight, bias = ensemble.expert(t, "0.weight"), ensemble.expert(t, "0.bias")
    return {"0.weight": x, "2.weight": torch.tanh(x @ weight.T + bias)}


def expected(ensemble, alpha, name):
    """The closed form of the paper, in float64."""
    total, product = 0, 0
    for t in range(len(ensemble.tasks)):
        x = inputs_of_layers(ensemble, t)[name].double().numpy()
        gram = x.T @ x / len(x)
        gram = alpha * gram + (1 - alpha) * np.diag(np.diag(gram))
        total = total + gram
        product = product + gram @ ensemble.expert(t, name).double().numpy().T
    return torch.from_numpy(np.linalg.solve(total, product).T).float()


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_linear_layers_solve_the_papers_equation_and_the_rest_is_averaged(alpha):
    ensemble = tiny_ensemble()
    merged = regmean(ensemble, alpha=alpha, batch_size=7)

    for name in ("0.weight", "2.weight"):
        torch.testing.assert_close(
            merged[name], expected(ensemble, alpha, name), atol=1e-4, rtol=1e-4
        )
    for name in ("0.bias", "2.bias"):
        torch.testing.assert_close(merged[name], ensemble.mean(name))


def test_a_task_weighs_the_same_whatever_the_number_of_its_samples():
    draw = torch.Generator().manual_seed(0)
    few = [torch.randn(20, 6, generator=draw) for _ in range(2)]
    many = [few[0], few[1].repeat(9, 1)]

    merged, again = (regmean(tiny_ensemble(tasks=2, inputs=x)) for x in (few, many))

    for name, value in merged.items():
        torch.testing.assert_close(again[name], value, atol=1e-5, rtol=1e-5)


def test_white_inputs_give_the_average():
    ensemble = tiny_ensemble(lambda: nn.Linear(6, 4), inputs=[torch.eye(6)] * 3)

    for name, value in regmean(ensemble).items():
        torch.testing.assert_close(value, ensemble.mean(name))


def test_every_task_counts():
    merged = regmean(tiny_ensemble(tasks=8))
    without = regmean(tiny_ensemble(tasks=7))

    assert not any(torch.allclose(merged[name], without[name]) for name in merged)


def test_one_expert_comes_back_where_its_inputs_determine_it():
    ensemble = tiny_ensemble(tasks=1, samples=60)

    for name, value in regmean(ensemble).items():
        torch.testing.assert_close(value, ensemble.expert(0, name), atol=1e-4, rtol=1e-4)


def test_broken_samples_are_refused():
    with pytest.raises(DivergenceError, match=r"0\.weight"):
        regmean(tiny_ensemble(inputs=[torch.full((4, 6), torch.inf)] * 3))
