"""Codebooks of any size on any CPU: entries are loaded one by one.

A block is decoded as a whole into scratch memory that stays in the L1 cache, by a function of its own that all column
counts call: 32 codes of 16 rows at a time in a loop, because unrolled it would not fit the instruction cache.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from ..lanes import I8, I16, I32, I64, Lanes, Memory, join, vector
from ..machine import LANES
from .codebook_fields import Words

_ROWS = ((0, 1, 4, 5), (2, 3, 6, 7))  # so that 4-byte halves come together by shuffles within 128 bits


def negative(signs: Lanes, word: int) -> Any:
    """64 flags: bits 4·word .. of each int32 lane."""
    byte = signs.pick([4 * r + word // 2 for r in range(LANES) for _ in range(4)])
    bits = [1 << (4 * (word % 2) + i) for _ in range(LANES) for i in range(4)]
    mask = ir.Constant(byte.type, [ir.Constant(I8, b) for b in bits])
    return byte.builder.icmp_unsigned("==", byte.builder.and_(byte.value, mask), mask)


class Decoder:
    def __init__(self, form: Any):
        builder = form.fields.builder
        scratch = cgutils.alloca_once(builder, vector(I8, 64), size=form.VALUES // 4)
        self.address = builder.ptrtoint(scratch, I64)
        self.memory = Memory(builder, self.address)
        builder.call(_decode_function(builder.module, form), [form.fields.address(), self.address])

    def codes(self, block: int, word: int) -> Lanes:
        return (self.memory + (512 * block + 64 * word)).load(I8, 64)


def _table(builder, form: Any) -> Memory:
    """The codebook plus OFFSET as a constant of the module."""
    name = f"{form.__name__}_codebook"
    table = builder.module.globals.get(name)
    if table is None:
        values = (form.GRID + form.OFFSET).astype(np.uint8).ravel()
        array = ir.Constant(ir.ArrayType(I8, values.size), bytearray(values))
        table = ir.GlobalVariable(builder.module, array.type, name)
        table.initializer, table.global_constant, table.linkage, table.align = array, True, "internal", 64
    return Memory(builder, builder.ptrtoint(table, I64))


def _decode_function(module: ir.Module, form: Any) -> ir.Function:
    """decode(words, codes): a block of 16 rows to 64 bytes for each 4 values."""
    form = type(form)
    name = f"{form.__name__}_decode"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, I64]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    words, target = (Memory(builder, argument) for argument in function.args)
    with cgutils.for_range(builder, I64(form.VALUES // 32)) as loop:
        _decode_32(builder, form, Words(words), loop.index, target.moved(builder.mul(loop.index, I64(512))))
    builder.ret_void()
    return function


def _decode_32(builder, form: Any, words: Words, block: Any, target: Memory) -> None:
    table, signs = _table(builder, form), form.signs(words, block)
    size = form.GRID.shape[1]
    for part in range(8 // size):
        indices = _indices(builder, form, words, block, part)
        for k in range(4):
            entries = [table.moved(builder.mul(indices[r][k], I64(size))) for r in range(LANES)]
            for i, codes in enumerate(_eight(entries) if size == 8 else [_four(entries)]):
                word = (size // 4) * (4 * part + k) + i
                (target + 64 * word).store(form.signed(codes.bytes(), signs, word))


def _indices(builder, form: Any, words: Words, block: Any, part: int) -> list[list[Any]]:
    """Four for each row, as int64; by way of memory, where scalar code finds them."""
    low, high = form.indices(words, block, part)
    element = I16 if high else I8
    if high:
        low = low.pick([lane for i in range(64) for lane in (i, i + 64)], high)
    place = builder.ptrtoint(cgutils.alloca_once(builder, vector(I8, 64), size=2), I64)
    memory = Memory(builder, place)
    memory.store(low)
    # Opaque to LLVM, which would otherwise take the vector apart instead of reading it back.
    opaque = ir.InlineAsm(ir.FunctionType(ir.VoidType(), [I64]), "", "r,~{memory}", side_effect=True)
    builder.call(opaque, [place])
    size = element.width // 8
    return [
        [builder.zext((memory + size * (4 * r + k)).load(element).value, I64) for k in range(4)] for r in range(LANES)
    ]


def _gathered(entries: list[Memory], rows: tuple[int, ...], element) -> Lanes:
    builder = entries[0].builder
    lanes = ir.Constant(vector(element, len(rows)), ir.Undefined)
    for i, row in enumerate(rows):
        lanes = builder.insert_element(lanes, entries[row].load(element).value, I32(i))
    return Lanes(builder, lanes)


def _four(entries: list[Memory]) -> Lanes:
    return join([_gathered(entries[half:], tuple(range(8)), I32) for half in (0, 8)])


def _eight(entries: list[Memory]) -> list[Lanes]:
    """Entries of 8 values -> the first four values of each row, the other four."""
    halves = []
    for half in (0, 8):
        a, b = (_gathered(entries[half:], rows, I64).bits(I32) for rows in _ROWS)
        halves.append([_take(a, b, i) for i in (0, 1)])
    return [join([halves[0][i], halves[1][i]]) for i in (0, 1)]


def _take(a: Lanes, b: Lanes, i: int) -> Lanes:
    """Lanes i, i + 2 of both, in each 128 bits."""
    return a.pick([lane + i for v in (0, 4) for lane in (v, v + 2, v + 8, v + 10)], b)
