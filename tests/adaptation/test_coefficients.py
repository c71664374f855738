import pytest
import torch
from tiny_ensemble import entropy, logits_of, tiny_ensemble

from momacli.adaptation.adamerging import start
from momacli.adaptation.fit import descend


def learned(ensemble, **options):
    given = {"per": "layer", "lam": 0.3, "rate": 1e-3, "clamp": True, **options}
    return start(ensemble, ensemble.task_vectors, **given)


def autograd_gradient(ensemble, lam):
    """dL/dlambda by autograd through theta_0 + sum_t lambda_t tau_t, for a [T, layers] lambda."""
    names = ensemble.tensors
    weights = {
        name: ensemble.base(name)
        + torch.tensordot(lam[:, layer], ensemble.task_vectors(name), dims=1)
        for layer, name in enumerate(names)
    }
    loss = sum(entropy(logits_of(ensemble, weights, t)) for t in range(len(ensemble.tasks)))
    return torch.autograd.grad(loss, lam)[0]


def backward_of_all_tasks(ensemble):
    """One backward pass over all samples of all tasks, as a step makes it."""
    found = []
    coefficients = learned(ensemble)
    coefficients.move = found.extend
    descend(ensemble, coefficients, steps=1, batch_size=10**6, precision="float32")
    return torch.stack(found, dim=1)


def test_one_backward_gives_the_gradient_of_all_tasks_losses_in_every_coefficient():
    lam = torch.full((3, 4), 0.3, requires_grad=True)

    found = backward_of_all_tasks(tiny_ensemble())

    torch.testing.assert_close(found, autograd_gradient(tiny_ensemble(), lam))


def test_task_wise_the_gradient_of_a_task_is_the_sum_over_its_layers():
    ensemble = tiny_ensemble()
    coefficients = learned(ensemble, per="task", rate=1.0)
    gradients = [torch.tensor([1.0, -2.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])]

    coefficients.move(gradients)

    # the first step of Adam is the learning rate against the sign, here clamped when used
    torch.testing.assert_close(coefficients.lam, torch.tensor([[-0.7], [1.3], [0.3]]))
    torch.testing.assert_close(coefficients.used[:, 0], torch.tensor([0.0, 1.0, 0.3]))


def test_a_clamped_coefficient_stays_where_its_gradient_pushes_it_out():
    coefficients = learned(tiny_ensemble(), rate=1.0)
    for _ in range(2):
        coefficients.move([torch.ones(3)] * 4)

    assert coefficients.used.eq(0).all()
    assert coefficients.lam.ge(-1.5).all()


def test_a_step_uses_every_task():
    gradients = backward_of_all_tasks(tiny_ensemble(tasks=8))

    assert gradients.shape == (8, 4)
    assert gradients.ne(0).all()


@pytest.mark.parametrize("clamp", [True, False])
def test_the_network_holds_base_plus_weighted_task_vectors(clamp):
    ensemble = tiny_ensemble()
    coefficients = learned(ensemble, lam=1.5, clamp=clamp)
    coefficients.place()

    factor = 1.0 if clamp else 1.5
    for name in ensemble.tensors:
        expected = ensemble.base(name) + factor * ensemble.task_vectors(name).sum(dim=0)
        torch.testing.assert_close(ensemble.network.parameters[name].data, expected)


def test_each_gradient_is_dropped_before_the_next_one_comes():
    ensemble = tiny_ensemble()
    coefficients, seen = learned(ensemble), []
    parameters, take = list(ensemble.network.parameters.values()), coefficients.take

    def look(layer, gradient):
        seen.append((layer, sum(parameter.grad is not None for parameter in parameters)))
        return take(layer, gradient)

    coefficients.take = look
    descend(ensemble, coefficients, steps=1, batch_size=10**6, precision="float32")

    assert {layer for layer, _ in seen} == set(range(len(parameters)))
    assert {there for _, there in seen} == {1}
