"""Tests of the coefficients that spherical methods share."""

import numpy as np
import pytest

from momacli.methods._sphere import combine, compiled_products, inner_products


@pytest.mark.parametrize("T", [1, 2, 3, 8])
@pytest.mark.parametrize("way", [None, "minus", "plus"])
@pytest.mark.parametrize("n", [5, 256, 1500])
def test_compiled_inner_products_are_those_of_float64(T, way, n):
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((T, n), dtype=np.float32)
    origin = generator.standard_normal(n, dtype=np.float32)

    products = compiled_products(vectors, **({way: origin} if way else {}))

    v = vectors.astype(np.float64)
    v = {None: v, "minus": (vectors - origin).astype(np.float64), "plus": v + origin}[way]
    np.testing.assert_allclose(products, v @ v.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("large", [0, 1 << 18])
def test_inner_products_are_those_of_the_vectors_from_the_center(large, monkeypatch):
    monkeypatch.setattr("momacli.methods._sphere._LARGE", large)
    generator = np.random.default_rng(0)
    taus = generator.standard_normal((3, 30, 50), dtype=np.float32)
    base = generator.standard_normal((30, 50), dtype=np.float32)

    products = inner_products(taus, base)

    v = (taus.astype(np.float64) + base).reshape(3, -1)
    np.testing.assert_allclose(products, v @ v.T, rtol=1e-12, atol=1e-12)


def test_combining_small_steps_from_a_large_base_keeps_their_digits():
    base = np.full(10, 1e4, dtype=np.float32)
    taus = np.full((2, 10), 1e-4, dtype=np.float32)
    thirds = np.array([1 / 3, 2 / 3])

    merged = combine(thirds, taus, base)

    np.testing.assert_allclose(merged, 1e-4, rtol=1e-6)
