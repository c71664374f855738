import pytest
import torch
from tiny_ensemble import entropy, logits_of, tiny_ensemble

from momacli.adaptation.concrete_adamerging import concrete_adamerging

QUICK = {"mask_steps": 3, "steps": 3, "batch_size": 8, "lam": 0.3, "mask_rate": 0.05, "rate": 0.02}


def autograd_merge(ensemble, per, mask_steps, steps, lam, mask_rate, rate):
    """The published procedure by autograd, from the same random numbers."""
    names, T = ensemble.tensors, len(ensemble.tasks)
    x = {name: torch.zeros(ensemble.base(name).numel(), requires_grad=True) for name in names}
    coefficients = torch.full((T, 1 if per == "task" else len(names)), lam, requires_grad=True)
    inner = torch.optim.Adam([coefficients], lr=1.0)
    outer = torch.optim.Adam(x.values(), lr=mask_rate)

    def drawn(uniform):
        masks = {}
        for name in names:
            u = uniform(len(x[name]))
            s = torch.sigmoid((x[name] + torch.logit(u)) / 0.5)
            masks[name] = (s / s.mean()).reshape(ensemble.base(name).shape)
        return masks

    def merged(masks):
        used = coefficients.expand(-1, len(names))
        return {
            name: ensemble.base(name)
            + masks[name] * torch.tensordot(used[:, i], ensemble.task_vectors(name), dims=1)
            for i, name in enumerate(names)
        }

    def move(masks, optimizer):
        optimizer.zero_grad()
        weights = merged(masks)
        sum(entropy(logits_of(ensemble, weights, t)) for t in range(T)).backward()
        optimizer.step()

    for step in range(mask_steps):
        masks = drawn(ensemble.uniform(f"mask {step}"))
        coefficients.data.fill_(lam)
        move({name: mask.detach() for name, mask in masks.items()}, inner)
        move(masks, outer)
    masks = {n: mask.detach() for n, mask in drawn(ensemble.uniform("last mask")).items()}
    coefficients.data.fill_(lam)
    last = torch.optim.Adam([coefficients], lr=rate)
    for _ in range(steps):
        move(masks, last)
    return merged(masks)


@pytest.mark.parametrize("per", ["task", "layer"])
def test_the_result_is_that_of_the_published_procedure_by_autograd(per):
    options = {key: value for key, value in QUICK.items() if key != "batch_size"}
    expected = autograd_merge(tiny_ensemble(), per, **options)
    found = concrete_adamerging(tiny_ensemble(), per=per, batch_size=10**6, **options)

    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, atol=1e-4, rtol=1e-4)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again = (concrete_adamerging(tiny_ensemble(), **QUICK) for _ in range(2))
    other = concrete_adamerging(tiny_ensemble(seed=1), **QUICK)

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_without_steps_and_with_the_expected_mask_it_is_task_arithmetic():
    ensemble = tiny_ensemble()
    merged = concrete_adamerging(ensemble, mask_steps=0, steps=0, lam=0.4, mask="expected")

    for name in ensemble.tensors:
        expected = ensemble.base(name) + 0.4 * ensemble.task_vectors(name).sum(dim=0)
        torch.testing.assert_close(merged[name], expected)
