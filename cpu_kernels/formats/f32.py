"""F32: IEEE single precision, any row length."""

from ..floats import FloatFormat, float_dequantizer, float_multiplier
from ..jit import dequantize_kernel, multiply_kernel
from ..lanes import F32 as F32_
from ..machine import LANES


class F32(FloatFormat):
    BYTES, HALF = 4, None

    @staticmethod
    def load(at):
        return at.load(F32_, LANES)


FORMAT = F32


_multiply, _dequantize = float_multiplier(F32), float_dequantizer(F32)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
