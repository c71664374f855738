"""Tests of the coefficients that spherical methods share."""

import numpy as np

from momacli.methods._sphere import combine, inner_products


def test_inner_products_over_several_blocks_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr("momacli.methods._sphere._BLOCK", 7)
    generator = np.random.default_rng(0)
    taus = generator.standard_normal((3, 4, 5), dtype=np.float32)
    base = generator.standard_normal((4, 5), dtype=np.float32)

    products = inner_products(taus, base)

    v = (taus.astype(np.float64) + base).reshape(3, -1)
    np.testing.assert_allclose(products, v @ v.T)


def test_inner_products_of_two_large_vectors_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr("momacli.methods._sphere._LARGE", 0)
    generator = np.random.default_rng(0)
    taus = generator.standard_normal((2, 30, 50), dtype=np.float32)
    base = generator.standard_normal((30, 50), dtype=np.float32)

    products = inner_products(taus, base)

    v = (taus.astype(np.float64) + base).reshape(2, -1)
    np.testing.assert_allclose(products, v @ v.T, rtol=1e-12)


def test_combining_small_steps_from_a_large_base_keeps_their_digits():
    base = np.full(10, 1e4, dtype=np.float32)
    taus = np.full((2, 10), 1e-4, dtype=np.float32)
    thirds = np.array([1 / 3, 2 / 3])

    merged = combine(thirds, taus, base)

    np.testing.assert_allclose(merged, 1e-4, rtol=1e-6)
