"""Codebooks of any size on any CPU: entries are loaded one by one.

A block is decoded as a whole into scratch memory that stays in the L1 cache, by a function of its own that all column
counts call: 32 codes of 16 rows at a time in a loop, because unrolled it would not fit the instruction cache.
Instructions and loads are the limit, in equal parts (5 instructions a cycle on a Zen 4 core). Hence four indices come
from one load and are parted in scalar registers, and entries of 8 are loaded as float64, whose pairs LLVM folds.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from ..lanes import I8, I32, I64, Lanes, Memory, vector
from .codebook_fields import Words


def negative(signs: Lanes, word: int) -> Any:
    """Flags of four bytes for each row: bits 4·word .. of its int32 lane."""
    rows = range(signs.count // 4)
    byte = signs.pick([4 * r + word // 2 for r in rows for _ in range(4)])
    bits = [1 << (4 * (word % 2) + i) for _ in rows for i in range(4)]
    mask = ir.Constant(byte.type, [ir.Constant(I8, bit) for bit in bits])
    return byte.builder.icmp_unsigned("==", byte.builder.and_(byte.value, mask), mask)


class Decoder:
    """Of one block."""

    def __init__(self, form: Any):
        builder = form.fields.builder
        scratch = builder.ptrtoint(cgutils.alloca_once(builder, vector(I8, 64), size=form.VALUES // 4), I64)
        builder.call(_decode_function(builder.module, type(form)), [form.fields.address(), scratch])
        self._scratch = Memory(builder, scratch)

    def ready(self) -> Memory:
        return self._scratch

    def codes(self, block: int, word: int) -> Lanes:
        return (self._scratch + (512 * block + 64 * word)).load(I8, 64)


def _decode_function(module: ir.Module, form: Any) -> ir.Function:
    """decode(words, scratch): a block of 16 rows to 64 bytes of codes for each 4 values."""
    name = f"{form.__name__}_decode"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, I64]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    words, scratch = (Memory(builder, argument) for argument in function.args)
    with cgutils.for_range(builder, I64(form.VALUES // 32)) as loop:
        _decode_32(
            builder, form, Words(words, form.place), loop.index, scratch.moved(builder.mul(loop.index, I64(512)))
        )
    builder.ret_void()
    return function


def _decode_32(builder, form: Any, words: Words, block: Any, scratch: Memory) -> None:
    address = builder.ptrtoint(cgutils.alloca_once(builder, vector(I8, 64), size=2), I64)
    table, signs, size = _table(builder, form), form.signs(words, block), form.GRID.shape[1]
    for part in range(8 // size):
        width = _store_indices(form.indices(words, block, part), Memory(builder, address))
        for half in range(2):
            rows = _rows(builder, table, size, width, builder.add(address, I64(8 * half * width // 8)))
            for i, entries in enumerate(_gathered(builder, rows, size)):
                word = 4 * part + i
                codes = form.signed(entries.bytes(), signs.part(half, 2), word)
                (scratch + (64 * word + 32 * half)).store(codes)


def _table(builder, form: Any) -> Memory:
    """The codebook plus OFFSET as a constant of the module."""
    name = f"{form.__name__}_codebook"
    table = builder.module.globals.get(name)
    if table is None:
        values = (form.GRID + form.OFFSET).astype(np.uint8).ravel()
        array = ir.Constant(ir.ArrayType(I8, values.size), bytearray(values))
        table = ir.GlobalVariable(builder.module, array.type, name)
        table.initializer, table.global_constant, table.linkage, table.align = array, True, "internal", 64
    return Memory(builder, _opaque(builder, builder.ptrtoint(table, I64)))  # fences do not hold loads of constants


def _store_indices(indices: tuple[Lanes, Lanes | None], place: Memory) -> int:
    """Where scalar code finds the four of each row; the number of bits of four."""
    low, high = indices
    place.store(low.pick([lane for i in range(64) for lane in (i, i + 64)], high) if high else low)
    return 64 if high else 32


def _rows(builder, table: Memory, size: int, width: int, address: Any) -> list[list[Any]]:
    """The entries at four indices of each of 8 rows, as scalars."""
    rows, kind = [], ir.DoubleType() if size == 8 else I32
    for r in range(8):
        if r % 2 == 0:
            _fence(builder, address)
        four = (Memory(builder, address) + width // 8 * r).load(ir.IntType(width)).value
        rows.append([table.moved(builder.mul(i, I64(size))).load(kind).value for i in _parted(builder, four)])
    return rows


def _fence(builder, address: Any) -> None:
    """LLVM moves no loads across: it neither takes the stored vector apart nor fills all registers with indices."""
    builder.call(ir.InlineAsm(ir.FunctionType(ir.VoidType(), [I64]), "", "r,~{memory}", side_effect=True), [address])


def _opaque(builder, value: Any) -> Any:
    """The same integer, but LLVM no longer knows where it is from."""
    return builder.call(ir.InlineAsm(ir.FunctionType(value.type, [value.type]), "", "=r,0"), [value])


def _parted(builder, four: Any) -> list[Any]:
    """An integer's quarters, as int64."""
    kind, bits = four.type, four.type.width // 4
    four = _opaque(builder, four)  # else LLVM loads each by itself
    fields = [builder.lshr(four, kind(bits * k)) for k in range(4)]
    return [builder.zext(builder.and_(field, kind((1 << bits) - 1)), I64) for field in fields]


def _gathered(builder, rows: list[list[Any]], size: int) -> list[Lanes]:
    """Entries -> int32 lanes of 8 rows for each 4 values."""
    if size == 4:
        return [_vector(builder, [row[k] for row in rows]) for k in range(4)]
    words = []
    for k in range(4):
        # In this order the halves of 8 bytes come together by shuffles within 128 bits.
        a, b = (_vector(builder, [rows[r][k] for r in order]) for order in ((0, 1, 4, 5), (2, 3, 6, 7)))
        words += [a.pick([half + lane for half in (0, 4) for lane in (i, i + 2, i + 8, i + 10)], b) for i in (0, 1)]
    return words


def _vector(builder, values: list[Any]) -> Lanes:
    """32 bytes of scalars as int32 lanes."""
    lanes = ir.Constant(vector(values[0].type, len(values)), ir.Undefined)
    for i, value in enumerate(values):
        lanes = builder.insert_element(lanes, value, I32(i))
    return Lanes(builder, builder.bitcast(lanes, vector(I32, 8)))
