"""Tests of the coefficients that spherical methods share."""

import torch

from momacli.methods._sphere import combine, inner_products


def test_inner_products_over_several_blocks_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr("momacli.methods._sphere._BLOCK", 7)
    generator = torch.Generator().manual_seed(0)
    taus = torch.randn(3, 4, 5, generator=generator)
    base = torch.randn(4, 5, generator=generator)

    products = inner_products(taus, base)

    v = (taus.double() + base.double()).flatten(1)
    torch.testing.assert_close(products, v @ v.mT)


def test_combining_small_steps_from_a_large_base_keeps_their_digits():
    base = torch.full((10,), 1e4)
    taus = torch.full((2, 10), 1e-4)
    thirds = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)

    merged = combine(thirds, taus, base)

    torch.testing.assert_close(merged, torch.full((10,), 1e-4))
