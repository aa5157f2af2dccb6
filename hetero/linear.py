"""A weight matrix bound to its kernel, and several matrices with the same input fused into one product."""

import numpy as np

from cpu_kernels import Matrix, Pool, linear


class Linear:
    """y[T, M] = x[T, K] · Wᵀ, float32 in and out, W in its quantized blocks. Several matrices share out M."""

    def __init__(self, pool: Pool, *matrices: Matrix):
        self.pool, self.matrices = pool, matrices

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return linear(self.pool, self.matrices, x)
