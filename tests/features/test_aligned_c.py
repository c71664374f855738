import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from momacli.features.aligned_c import aligned_c
from momacli.features.families import moments, orthogonal
from momacli.models.interface import Head
from momacli.models.separate_head import unit_norm


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def problem():
    """Merged and fine-tuned features, turned and noisy, and the head of three classes."""
    draw = generator()
    finetuned = torch.randn(60, 4, generator=draw)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=draw))[0]
    merged = finetuned @ turn + 0.3 * torch.randn(60, 4, generator=draw)
    return merged, finetuned, Head(torch.randn(3, 4, generator=draw), torch.zeros(3))


def divergence(merged, finetuned, head: Head, trained: Head) -> float:
    p = torch.softmax(head(finetuned).double(), dim=1)
    q = torch.softmax(trained(merged).double(), dim=1)
    return float((p * (p / q).log()).sum(dim=1).mean())


def test_with_no_step_the_head_is_as_it_was(problem):
    merged, finetuned, head = problem
    trained = aligned_c(merged, finetuned, head, steps=0, generator=generator())

    assert torch.equal(trained.weight, head.weight)
    assert trained.bias is not None
    assert torch.equal(trained.bias, head.bias)


def test_many_steps_reach_the_optimum_that_another_solver_finds(problem):
    merged, finetuned, head = problem
    z, answers = merged.double().numpy(), torch.softmax(head(finetuned).double(), 1).numpy()

    def objective(flat: np.ndarray) -> float:
        logits = z @ flat[:12].reshape(3, 4).T + flat[12:]
        log_q = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return float((answers * (np.log(answers) - log_q)).sum(axis=1).mean())

    best = minimize(objective, np.zeros(15), method="BFGS").fun
    trained = aligned_c(
        merged, finetuned, head, steps=600, batch_size=60, rate=0.02, generator=generator()
    )
    assert divergence(merged, finetuned, head, trained) == pytest.approx(best, rel=1e-2)


def test_a_trained_head_can_do_all_that_an_absorbed_rotation_can(problem):
    merged, finetuned, head = problem
    A = orthogonal(moments(merged, finetuned))[0].float()
    turned = Head(head.weight @ A, head.bias)
    trained = aligned_c(
        merged, finetuned, head, steps=600, batch_size=60, rate=0.02, generator=generator()
    )

    assert divergence(merged, finetuned, head, trained) < divergence(
        merged, finetuned, head, turned
    )


def test_the_head_keeps_its_size_and_what_comes_after_its_first_layer(problem):
    merged, finetuned, head = problem
    several = Head(head.weight, head.bias, rest=torch.tanh)
    trained = aligned_c(merged, finetuned, several, steps=20, generator=generator())

    assert trained.weight.shape == head.weight.shape
    assert trained.rest is several.rest
    assert not torch.equal(trained.weight, head.weight)


def test_where_features_are_normalised_the_scale_of_the_logits_does_not_change_the_rate(problem):
    merged, finetuned, head = problem
    lengths = []
    for scale in (1.0, 100.0):
        given = Head(scale * unit_norm(head.weight), None, before=unit_norm)
        trained = aligned_c(merged, finetuned, given, steps=1, batch_size=60, generator=generator())
        assert trained.bias is None
        lengths.append(float((trained.weight - given.weight).abs().max()) / scale)

    assert lengths == pytest.approx([1e-3, 1e-3], rel=1e-2)


def test_the_same_seed_gives_the_same_head(problem):
    one, two, other = (
        aligned_c(*problem, steps=5, generator=generator(seed)).weight for seed in (1, 1, 2)
    )

    assert torch.equal(one, two)
    assert not torch.equal(one, other)
