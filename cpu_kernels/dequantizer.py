"""The kernels that give a quantized format's values as float32, emitted from its description (tile.Format)."""

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import F32, I32, I64, Lanes, Memory, space, transposed
from .machine import LANES
from .tile import BLOCK, Format, byte, planes


def dequantizer(form: type[Format]) -> Any:
    """The intrinsic dequantize(weights, blocks, target, stride): a group's values as 16 float32 rows, exactly.

    Rows go to target + r·stride.
    """

    @intrinsic
    def dequantize(typing, weights, blocks, target, stride):
        def codegen(context, builder, signature, arguments):
            emit(builder, form, arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    return dequantize


def emit(builder, form: type[Format], arguments) -> None:
    """Block by block: codes, scales and minima into buffers, then values from these in a loop of four: unrolled over
    a block of 256 its thousand stores would be three quarters of the compile time."""
    weights, blocks, target, stride = arguments
    rows = [Memory(builder, builder.add(target, builder.mul(stride, I64(r)))) for r in range(LANES)]
    quads, parts = form.VALUES // 4, form.VALUES // BLOCK * form.SCALES
    buffer = [space(builder, 64 * count) for count in (quads, parts, parts)]
    with cgutils.for_range(builder, blocks) as loop:
        has_minima = _decode_block(form(*planes(builder, form, weights, blocks, loop.index)), buffer)
        at = builder.mul(loop.index, I64(4 * form.VALUES))
        with cgutils.for_range(builder, I64(quads)) as quad:
            part = builder.mul(builder.udiv(quad.index, I64(quads // parts)), I64(64))
            codes = buffer[0].moved(builder.shl(quad.index, I64(6))).load(I32, LANES)
            scale, minimum = (place.moved(part).load(F32, LANES) for place in buffer[1:])
            here = builder.add(at, builder.shl(quad.index, I64(4)))
            for j, quads_of_rows in enumerate(transposed(_values(form, codes, scale, minimum if has_minima else None))):
                for q in range(LANES // 4):
                    rows[4 * q + j].moved(here).store(quads_of_rows.part(q, LANES // 4))


def _decode_block(block: Format, buffer: list[Memory]) -> bool:
    """All 4-code words, and each part's scale and minimum, into the buffers; whether there are minima."""
    codes, scales, minima = buffer
    has_minima = False
    for b in range(block.VALUES // BLOCK):
        for word in range(8):
            (codes + 4 * LANES * (8 * b + word)).store(block.codes(b, word))
        for part, scale in enumerate(block.scales(b)):
            (scales + 4 * LANES * (b * block.SCALES + part)).store(scale)
        for part, minimum in enumerate(block.minima(b) or []):
            (minima + 4 * LANES * (b * block.SCALES + part)).store(minimum)
            has_minima = True
    return has_minima


def _values(form: type[Format], codes: Lanes, scale: Lanes, minimum: Lanes | None) -> list[Lanes]:
    """Four values of each row: scale x code - minimum, rounded as the format's definition rounds."""
    values = [(byte(codes, i, signed=form.SIGNED) - float(form.OFFSET)) * scale for i in range(4)]
    return [value - minimum for value in values] if minimum else values
