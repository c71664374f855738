import torch
from tiny_ensemble import entropy, logits_of, tiny_ensemble

from momacli.adaptation.concrete import relaxed_bernoulli
from momacli.adaptation.concrete_task_arithmetic import concrete_task_arithmetic

QUICK = {"steps": 4, "batch_size": 8, "lam": 0.4, "rate": 0.05}


def autograd_merge(ensemble, steps, lam, rate):
    """The published procedure by autograd, with one graph a task, from the same random numbers."""
    names = ensemble.tensors
    x = {name: torch.zeros(ensemble.base(name).numel(), requires_grad=True) for name in names}
    adam = torch.optim.Adam(x.values(), lr=rate)

    def merged(uniform):
        weights = {}
        for name in names:
            u = uniform(len(x[name]))
            s = torch.sigmoid((x[name] + torch.logit(u)) / 0.5)
            mask = (s / s.mean()).reshape(ensemble.base(name).shape)
            masked = [mask * tau for tau in ensemble.task_vectors(name)]
            weights[name] = ensemble.base(name) + lam * sum(masked)
        return weights

    for step in range(steps):
        adam.zero_grad()
        weights = merged(ensemble.uniform(f"mask {step}"))
        tasks = range(len(ensemble.tasks))
        sum(entropy(logits_of(ensemble, weights, t)) for t in tasks).backward()
        adam.step()
    return merged(ensemble.uniform("last mask"))


def test_the_result_is_that_of_the_published_procedure_by_autograd():
    expected = autograd_merge(tiny_ensemble(), steps=4, lam=0.4, rate=0.05)
    found = concrete_task_arithmetic(tiny_ensemble(), **{**QUICK, "batch_size": 10**6})

    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, atol=1e-4, rtol=1e-4)


def test_the_masks_come_from_the_seed():
    first, again = (concrete_task_arithmetic(tiny_ensemble(), **QUICK) for _ in range(2))
    other = concrete_task_arithmetic(tiny_ensemble(seed=1), **QUICK)

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_the_expected_mask_without_steps_is_task_arithmetic():
    ensemble = tiny_ensemble()
    merged = concrete_task_arithmetic(ensemble, steps=0, lam=0.4, mask="expected")

    for name in ensemble.tensors:
        expected = ensemble.base(name) + 0.4 * ensemble.task_vectors(name).sum(dim=0)
        torch.testing.assert_close(merged[name], expected)


def test_a_mask_is_shared_by_the_tasks():
    ensemble = tiny_ensemble()
    merged = concrete_task_arithmetic(ensemble, steps=0, lam=0.4)
    uniform = ensemble.uniform("last mask")

    for name in ensemble.tensors:
        tau = ensemble.task_vectors(name).sum(dim=0)
        s = relaxed_bernoulli(torch.zeros(tau.numel()), uniform(tau.numel()), 0.5)
        s = s.reshape(tau.shape)
        torch.testing.assert_close(merged[name], ensemble.base(name) + 0.4 * tau * s / s.mean())
