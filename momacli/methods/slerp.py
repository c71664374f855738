"""Spherical linear interpolation (Shoemake 1985, SIGGRAPH 19(3); as merged by mergekit).

theta_m = sin((1-t) omega)/sin omega * theta_a + sin(t omega)/sin omega * theta_b, where omega is
the angle between the weights theta_a and theta_b of one tensor, not between task vectors.
With one expert theta_a is the base; with two, theta_a is the first.

Shoemake interpolates unit vectors. Here, as in mergekit, the weights keep their lengths, and
vectors closer than `dot_threshold` are interpolated linearly. A zero vector has no angle to
anything: it too is interpolated linearly, where mergekit takes the angle to be 90 degrees.
"""

import numpy as np

from momacli.errors import UsageError
from momacli.methods._arrays import on_arrays
from momacli.methods._sphere import combine, cosine_of, inner_products, slerp_coefficients
from momacli.shapes import Float

ELEMENTWISE = False
ORDERED = True
MAX_EXPERTS = 2


@on_arrays
def slerp(
    task_vectors: Float[np.ndarray, "T *shape"],
    *,
    base: Float[np.ndarray, "*shape"],
    t: float = 0.5,
    dot_threshold: float = 0.9995,
) -> Float[np.ndarray, "*shape"]:
    """Return the point at t on the arc from the base to the expert, or between two experts.

    base: theta_0 of this tensor.
    t: 0 is the base or the first expert, 1 the last expert; 0.5 is halfway (mergekit has no
        default).
    dot_threshold: cosine above which the arc is taken as straight; 0.9995 is mergekit's, which
        holds for most fine-tuned experts of one base. 1 follows the arc at every angle.

    Raises UsageError for more than two experts.
    """
    T = task_vectors.shape[0]
    if T > MAX_EXPERTS:
        raise UsageError(
            f"slerp interpolates between at most two experts, found {T}",
            hint="multislerp and karcher take any number",
        )
    if T == 1:  # the base is an expert that has not moved
        task_vectors = np.concatenate([np.zeros_like(task_vectors), task_vectors])
    products = inner_products(task_vectors, base)
    cosine = cosine_of(products)
    c = slerp_coefficients(cosine, t=t, threshold=dot_threshold)
    return combine(c, task_vectors, base)
