import numpy as np
import torch

from momacli.methods.magmax import magmax


def test_the_entry_that_moved_most_is_taken_with_its_sign():
    taus = torch.tensor([[1.0, -5.0, 0.0], [-3.0, 4.0, 0.1], [2.0, 4.5, -0.2]])

    merged = magmax(taus, lam=1.0)

    torch.testing.assert_close(merged, torch.tensor([-3.0, -5.0, -0.2]))


def test_equal_and_opposite_moves_are_decided_the_same_in_any_order():
    taus = torch.tensor([[2.0, -1.0], [-2.0, 1.0]])

    merged = magmax(taus, lam=1.0)

    torch.testing.assert_close(merged, torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(magmax(taus.flip(0), lam=1.0), merged)


def test_it_agrees_with_argmax_in_numpy():
    taus = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))

    merged = magmax(taus)

    most = np.abs(taus.numpy()).argmax(axis=0)[None]
    np.testing.assert_allclose(
        merged.numpy(), 0.5 * np.take_along_axis(taus.numpy(), most, axis=0)[0], rtol=1e-6
    )
