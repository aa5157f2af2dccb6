"""What a layer caches of its tokens, from the projection to the cache, in one verb; on a GPU it is one launch.

T tokens, Q = q_lora rows (or those of the whole query), C = 512 latent values, R = 64 rotated key values.
"""

import numpy as np

from .cache import write_cache
from .norm_rope import rms_norm, rope
from .pool import Pool


def write_latent(
    pool: Pool,
    both: np.ndarray,
    q_rows: int,
    kv_norm: np.ndarray,
    eps: float,
    cos: np.ndarray,
    sin: np.ndarray,
    layer: np.ndarray,
    slots: np.ndarray,
) -> None:
    """Of both[T, Q + C + R]: norm(latent) and the rotated key into `layer` at slots int64 [T], each another one.

    `q_rows` is Q, kv_norm[C] the norm's weight, cos and sin [T, R/2] as for `rope`. The key part of `both` is scratch
    afterwards: here it is rotated in place.
    """
    if both.ndim != 2 or kv_norm.ndim != 1 or not 0 <= q_rows < both.shape[1] - kv_norm.size:
        raise ValueError(f"write_latent: {both.shape} is not [T, {q_rows} + C + R] with a norm of [C], {kv_norm.shape}")
    latent, key = both[:, q_rows : q_rows + kv_norm.size], both[:, q_rows + kv_norm.size :]
    rope(pool, key, cos, sin)
    write_cache(pool, layer, rms_norm(pool, latent, kv_norm, eps), key, slots)
