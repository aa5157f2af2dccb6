"""The kernels' slow twins in float64 numpy, with the same arguments: what every backend is compared with."""

from hetero.kernel_references import (
    attend,
    cache_values,
    keys_of,
    mla_absorbed,
    mla_expanded,
    rms_norm,
    rope,
    route,
)

__all__ = ["attend", "cache_values", "keys_of", "mla_absorbed", "mla_expanded", "rms_norm", "rope", "route"]
