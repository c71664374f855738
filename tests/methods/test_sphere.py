"""Tests of the coefficients that spherical methods share."""

import numpy as np
import pytest

from momacli.methods._sphere import combine, inner_products


@pytest.mark.parametrize(
    ("limit", "value", "shape"),
    [("_BLOCK", 7, (3, 4, 5)), ("_LARGE", 0, (2, 30, 50))],
    ids=["several blocks", "two in one pass"],
)
def test_inner_products_are_those_of_the_whole(limit, value, shape, monkeypatch):
    monkeypatch.setattr(f"momacli.methods._sphere.{limit}", value)
    generator = np.random.default_rng(0)
    taus = generator.standard_normal(shape, dtype=np.float32)
    base = generator.standard_normal(shape[1:], dtype=np.float32)

    products = inner_products(taus, base)

    v = (taus.astype(np.float64) + base).reshape(shape[0], -1)
    np.testing.assert_allclose(products, v @ v.T, rtol=1e-12)


def test_combining_small_steps_from_a_large_base_keeps_their_digits():
    base = np.full(10, 1e4, dtype=np.float32)
    taus = np.full((2, 10), 1e-4, dtype=np.float32)
    thirds = np.array([1 / 3, 2 / 3])

    merged = combine(thirds, taus, base)

    np.testing.assert_allclose(merged, 1e-4, rtol=1e-6)
