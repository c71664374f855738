"""Orthogonal fine-tuning (OFT) adapters, merged in the Lie algebra (arXiv:2602.05943).

An adapter stores for each block of b inputs the b (b - 1) / 2 entries above the diagonal of a
skew-symmetric Q, row by row; the layer's weight becomes W R^T with R block-diagonal.
"""

import torch
from torch import Tensor

from momacli.methods._rotations import cayley, merge_in_lie_algebra
from momacli.shapes import Float


def merge_oft(adapters: Float[Tensor, "T blocks entries"]) -> Float[Tensor, "blocks entries"]:
    """Return the merged adapter of one layer: the sum of the Q_t at their mean norm.

    The norm is taken over all blocks of the layer together, |Q|_F = sqrt(2) times the norm of the
    stored entries. Merge adapters of the same base, block size and Cayley setting only.
    """
    return merge_in_lie_algebra(adapters)


def skew_blocks(adapter: Float[Tensor, "blocks entries"]) -> Float[Tensor, "blocks b b"]:
    """Return the skew-symmetric blocks Q that an adapter stores."""
    entries = adapter.shape[1]
    b = round((1 + (1 + 8 * entries) ** 0.5) / 2)
    q = adapter.new_zeros(adapter.shape[0], b, b)
    rows, columns = torch.triu_indices(b, b, offset=1, device=adapter.device)
    q[:, rows, columns] = adapter
    return q - q.mT


def oft_rotations(
    q: Float[Tensor, "blocks b b"],
    *,
    use_cayley_neumann: bool,
    num_cayley_neumann_terms: int = 5,
    last_term_doubled: bool = False,
) -> Float[Tensor, "blocks b b"]:
    """Return the blocks of R as PEFT computes them; both settings stand in adapter_config.json.

    use_cayley_neumann: true (PEFT's default) truncates the Neumann series of (I + Q)(I - Q)^-1;
        five terms are I + 2Q + 2Q^2 + 2Q^3 + Q^4, orthogonal for small Q only. False is exactly
        (I - Q)(I + Q)^-1, which is the inverse of what the series approaches: an adapter means
        nothing without this flag.
    num_cayley_neumann_terms: of the series; PEFT's three terms are the same as its four.
    last_term_doubled: as PEFT before 0.18 had it: five terms ended in 2Q^4, three in 2Q^2.
    """
    if not use_cayley_neumann:
        return cayley(-q)
    if num_cayley_neumann_terms <= 2:
        coefficients = [1, 2][: max(1, num_cayley_neumann_terms)]
    elif last_term_doubled:
        coefficients = [1, *[2] * (num_cayley_neumann_terms - 1)]
    else:
        coefficients = [1, *[2] * (max(num_cayley_neumann_terms, 4) - 2), 1]
    eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    r = torch.zeros_like(q)
    for c in reversed(coefficients):
        r = r @ q + c * eye
    return r


def rotate_inputs(
    weight: Float[Tensor, "out in"], rotations: Float[Tensor, "blocks b b"]
) -> Float[Tensor, "out in"]:
    """Return W R^T with R block-diagonal; a single block is shared by all blocks of inputs."""
    b = rotations.shape[-1]
    inputs = weight.reshape(weight.shape[0], -1, b)
    return torch.einsum("okc,krc->okr", inputs, rotations.expand(inputs.shape[1], b, b)).reshape(
        weight.shape
    )
