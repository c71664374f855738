import pytest
import torch

from momacli.alignment.transforms import PenalisedMatrices, RunningSolution
from momacli.features.families import moments
from momacli.features.procrustes import orthogonality_error, procrustes


def features(seed: int, n: int = 30, d: int = 5) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_running_solutions_start_at_the_closed_form_and_stay_orthogonal():
    z_m, z_t = features(0), features(1)
    running = RunningSolution(moments(z_m, z_t), family="orthogonal", memory=0.9, solve_every=2)

    torch.testing.assert_close(running.matrices[0], procrustes(z_m, z_t), atol=1e-5, rtol=0)
    for seed in range(6):
        running.observe([features(seed)], [features(seed + 10)])
        assert orthogonality_error(running.matrices[0]) < 1e-5


@pytest.mark.parametrize("family", ["orthogonal", "similarity", "linear"])
def test_running_solutions_forget_the_past_and_find_a_new_rotation(family):
    planted = torch.linalg.qr(features(5, 5, 5))[0]
    start = moments(torch.eye(5), torch.eye(5))
    running = RunningSolution(start, family=family, memory=0.5, solve_every=1)
    for seed in range(30):
        z_m = features(seed)
        running.observe([z_m], [z_m @ planted.mT])

    torch.testing.assert_close(running.matrices[0], planted, atol=1e-2, rtol=0)


def test_the_papers_penalty_draws_matrices_towards_orthogonality():
    start = 2 * torch.eye(4)[None]
    matrices = PenalisedMatrices(start, rate=0.05, alpha=1.0)
    before = matrices.penalty().item()
    for _ in range(200):
        matrices.penalty().backward()
        matrices.observe([], [])

    assert abs(before - 6.0) < 1e-5  # |4I - I|_F of a 4 x 4 matrix
    assert orthogonality_error(matrices.matrices.detach()[0]) < 0.1
