"""Tests of merging orthogonal fine-tuning adapters."""

import pytest
import torch

from momacli.methods._oft import merge_oft, oft_rotations, rotate_inputs, skew_blocks


def adapters(*shape: int, size: float = 0.05) -> torch.Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()


def test_entries_above_the_diagonal_are_stored_row_by_row():
    q = skew_blocks(torch.tensor([[1.0, 2.0, 3.0]]))

    expected = torch.tensor([[[0.0, 1.0, 2.0], [-1.0, 0.0, 3.0], [-2.0, -3.0, 0.0]]])
    torch.testing.assert_close(q, expected)


def test_the_blocks_of_a_layer_are_merged_at_their_joint_mean_norm():
    stored = adapters(3, 4, 10)  # 3 tasks, 4 blocks of 5 x 5

    merged = skew_blocks(merge_oft(stored))

    q = torch.stack([skew_blocks(adapter) for adapter in stored])
    c = torch.linalg.vector_norm(q, dim=(1, 2, 3)).sum() / q.sum(dim=0).norm()
    torch.testing.assert_close(merged, c * q.sum(dim=0) / 3)


def test_a_single_adapter_comes_back():
    stored = adapters(1, 4, 10)

    torch.testing.assert_close(merge_oft(stored), stored[0])


def test_the_exact_map_is_peft_s_i_minus_q_over_i_plus_q():
    q = skew_blocks(adapters(2, 10))
    eye = torch.eye(5, dtype=q.dtype)

    r = oft_rotations(q, use_cayley_neumann=False)

    torch.testing.assert_close(r, (eye - q) @ torch.linalg.inv(eye + q))
    torch.testing.assert_close(r @ r.mT, eye.expand(2, 5, 5))


def test_the_neumann_series_has_five_terms_and_approaches_the_inverse_of_the_exact_map():
    q = skew_blocks(adapters(2, 10))
    eye = torch.eye(5, dtype=q.dtype)

    r = oft_rotations(q, use_cayley_neumann=True)

    torch.testing.assert_close(r, eye + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q)
    exact = oft_rotations(q, use_cayley_neumann=False)
    assert (r - exact.mT).norm() < 1e-2 * (r - exact).norm()


@pytest.mark.parametrize(
    ("terms", "coefficients"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 2, 1]), (4, [1, 2, 2, 1]), (6, [1, 2, 2, 2, 2, 1])],
)
def test_other_numbers_of_terms_follow_peft(terms, coefficients):
    q = skew_blocks(adapters(1, 10))

    r = oft_rotations(q, use_cayley_neumann=True, num_cayley_neumann_terms=terms)

    powers = [torch.linalg.matrix_power(q, n) for n in range(len(coefficients))]
    torch.testing.assert_close(r, sum(c * p for c, p in zip(coefficients, powers, strict=True)))


@pytest.mark.parametrize("blocks", [3, 1])
def test_blocks_of_inputs_are_turned_by_their_own_or_the_shared_rotation(blocks):
    rotations = oft_rotations(skew_blocks(adapters(blocks, 6, size=1.0)), use_cayley_neumann=False)
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    turned = rotate_inputs(weight, rotations)

    r = torch.block_diag(*rotations.expand(3, 4, 4))
    torch.testing.assert_close(turned, weight @ r.mT)
