"""BF16: the upper half of a float32, any row length."""

from ..floats import FloatFormat, float_dequantizer, float_multiplier
from ..jit import dequantize_kernel, multiply_kernel
from ..lanes import I16
from ..machine import LANES


class BF16(FloatFormat):
    BYTES, HALF = 2, 0

    @staticmethod
    def load(at):
        return at.load(I16, LANES).real_from_bf16()


FORMAT = BF16


_multiply, _dequantize = float_multiplier(BF16), float_dequantizer(BF16)


@multiply_kernel
def multiply(weights, groups, blocks, columns, x_list, y_list, y_offset):
    _multiply(weights, groups, blocks, columns, x_list, y_list, y_offset)


@dequantize_kernel
def dequantize(weights, blocks, target, stride):
    _dequantize(weights, blocks, target, stride)
