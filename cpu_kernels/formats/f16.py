"""F16: IEEE half precision, any row length."""

from ..floats import FloatFormat, float_dequantizer, float_multiplier
from ..jit import dequantize_kernel, multiply_kernel
from ..lanes import I16
from ..machine import LANES


class F16(FloatFormat):
    BYTES, HALF = 2, 0

    @staticmethod
    def load(at):
        return at.load(I16, LANES).real_from_f16()


FORMAT = F16


_multiply, _dequantize = float_multiplier(F16), float_dequantizer(F16)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
