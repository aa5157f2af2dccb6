"""Weight formats that the kernels decode in registers, one file each. Other types keep the bytes of the file."""

from . import bf16, f16, f32, iq4_xs, q4_0, q4_k, q5_0, q5_k, q6_k, q8_0
from .format import SUB_BLOCK, Format, Planes

FORMATS: dict[str, Format] = {
    module.FORMAT.type: module.FORMAT for module in (f32, f16, bf16, q8_0, q6_k, q5_k, q5_0, q4_k, q4_0, iq4_xs)
}

__all__ = ["FORMATS", "SUB_BLOCK", "Format", "Planes"]
