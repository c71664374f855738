"""Sums of task vectors in one compiled pass: NumPy's bits, entry by entry."""

import inspect

import numpy as np
import pytest

from momacli.methods import average, task_arithmetic
from momacli.methods._sums import added_to_base, weighted_sum


def models(n: int, seed: int = 0) -> np.ndarray:
    """A base and eight experts with numbers of many sizes, and zeros of both signs."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((9, n)) * 10.0 ** rng.integers(-6, 3, (9, n))
    values[rng.random((9, n)) < 0.3] = 0
    values[:, 0] = 0
    found = np.where(rng.random((9, n)) < 0.5, -values, values).astype(np.float32)
    found[0, 0] = -0.0
    return found


@pytest.mark.parametrize("n", [2, 7, 1023, 5000])
@pytest.mark.parametrize("weights", [None, (-1, 2), (-2, -1)])
def test_in_one_pass_a_sum_has_the_bits_of_one_after_another(n, weights):
    if weights is not None:
        weights = np.linspace(*weights, 8, dtype=np.float32)
    theta_0, *thetas = models(n)
    thetas = np.stack(thetas)

    merged, changed = added_to_base(theta_0, thetas, weights, 1 / 3)

    expected = theta_0 + weighted_sum(thetas - theta_0, weights, 1 / 3)
    assert merged.tobytes() == expected.tobytes()
    assert changed == np.count_nonzero(expected != theta_0)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_sum_that_is_not_finite_is_told(broken):
    theta_0, *thetas = models(3000)
    thetas[3][2999] = broken

    _, changed = added_to_base(theta_0, np.stack(thetas), None, 1.0)

    assert changed is None


@pytest.mark.parametrize("module", [average, task_arithmetic])
def test_a_sum_in_one_pass_leaves_out_what_the_method_leaves_out(module):
    method = getattr(module, module.__name__.rpartition(".")[2])
    own, others = (inspect.signature(one).parameters for one in (method, module.factors))

    assert {key: own[key].default for key in ("weights", "lam")} == {
        key: others[key].default for key in ("weights", "lam")
    }
