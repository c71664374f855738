"""Inner products of a few long vectors, compiled: all of them in one pass."""

import functools

import numpy as np

from momacli.checkpoint.arrays import Array
from momacli.compiled.kept_loop import KeptLoop

WIDTH = 1 << 8
"""Entries of each vector that are held in float64 at a time, in the processor's first cache."""


@functools.partial(KeptLoop, in_any_order=True)
def multiply_all(vectors: Array, origin: Array, factor: int, held: Array, products: Array) -> None:
    """All inner products, in float64, of v_t = vectors[t] + factor * origin.

    vectors: [T, n]. origin: [n]. factor: -1 takes the difference in the type of the vectors,
        as a task vector is; 1 takes the sum in float64.
    held: [T', WIDTH] of float64, for what is worked on; T' is even and no less than T.
    products: [T', T'], of which what is below the diagonal of the first T, and on it, is right.
    """
    T, n = vectors.shape
    wide = np.float64
    products[:] = 0
    for start in range(0, n, WIDTH):
        size = min(WIDTH, n - start)
        z = origin[start : start + size]
        for t in range(T):
            row, v = vectors[t, start : start + size], held[t]
            if factor == 0:
                for i in range(size):
                    v[i] = row[i]
            elif factor < 0:
                for i in range(size):
                    v[i] = row[i] - z[i]
            else:
                for i in range(size):
                    v[i] = wide(row[i]) + wide(z[i])
        for t in range(0, products.shape[0], 2):  # two by two: what is loaded is used twice
            a, b = held[t], held[t + 1]
            for u in range(0, t + 2, 2):
                c, d = held[u], held[u + 1]
                ac, ad, bc, bd = wide(0), wide(0), wide(0), wide(0)
                for i in range(size):
                    ac += a[i] * c[i]
                    ad += a[i] * d[i]
                    bc += b[i] * c[i]
                    bd += b[i] * d[i]
                products[t, u] += ac
                products[t, u + 1] += ad
                products[t + 1, u] += bc
                products[t + 1, u + 1] += bd
