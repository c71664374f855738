"""How close a matrix is to a rotation, and how far a rotation turns (MOMA section 3.4).

A = Q P with Q orthogonal and P symmetric (polar decomposition): Q turns or mirrors, P
stretches, by s = tr(P)/d on average.
The eigenvalues of Q are e^(i phi); its eigenphases |phi| say by how much each of its planes is
turned, 0 to 180 degrees. In directions that the features hardly use, Q is what happens to fit
best, so the turn of the features themselves is measured, too.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from momacli.features.metrics import cosine
from momacli.features.procrustes import polar_factor
from momacli.shapes import Float


@dataclass(frozen=True)
class Closeness:
    """What kind of map a matrix A [d, d] is; s Q is the similarity nearest to it."""

    determinant: int  # sign of det A: 1 a rotation if A is orthogonal, -1 with a mirroring
    log_determinant: float | None  # ln|det A| / d, the mean of the logarithms of its stretches
    scale: float  # s, the mean of its singular values
    from_similarity: float  # |A - s Q|_F / |A|_F, 0 to 1; 0 where A turns and scales, no more
    from_identity: float  # |A - I|_F / |I|_F; 0 to 2 for orthogonal A, about 1.41 for a random one
    median_phase: float  # of Q's eigenphases, in degrees
    largest_phase: float
    turn: float  # mean angle between z and A z over the features, in degrees


def closeness(
    matrix: Float[Tensor, "d d"], features: Float[Tensor, "N d"]
) -> tuple[Closeness, Float[Tensor, " d"]]:
    """Return how close a matrix is to a rotation, and its eigenphases, ascending, in degrees."""
    A = matrix.double()
    Q = polar_factor(A)
    eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
    phases = eigenphases(Q)
    sign, logarithm = torch.linalg.slogdet(A)
    size, scale = float(torch.linalg.norm(A)), float((Q * A).sum()) / len(A)
    z = features.double()
    angles = torch.rad2deg(torch.arccos(cosine(z, z @ A.mT).clamp(-1, 1)))
    found = Closeness(
        determinant=int(sign),
        log_determinant=float(logarithm) / len(A) if sign else None,
        scale=scale,
        from_similarity=float(torch.linalg.norm(A - scale * Q)) / size if size else 0.0,
        from_identity=float(torch.linalg.norm(A - eye)) / math.sqrt(len(A)),
        median_phase=float(phases.median()),
        largest_phase=float(phases[-1]),
        turn=float(angles.mean()),
    )
    return found, phases


def eigenphases(orthogonal: Float[Tensor, "d d"]) -> Float[Tensor, " d"]:
    """Return |phi| of the eigenvalues e^(i phi) of an orthogonal matrix: degrees, ascending."""
    values = torch.linalg.eigvals(orthogonal.double().cpu())
    return torch.rad2deg(values.angle().abs()).sort().values
