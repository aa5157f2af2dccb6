"""The x16 layout: 16 rows of a GGUF tensor interleaved word by word: a vector holds 16 rows' bytes side by side.

A group of 16 rows whose rows are B blocks of W words of 4 bytes, and one field of 2 bytes (most formats' scale):
    [block 0..B-1][word 0..W-1][row 0..15] 4 bytes | [block 0..B-1][row 0..15] 2 bytes, where there is such a field
The same bytes as in the file, in another order. Where rows do not fill the last group its last row is repeated.
"""

from typing import Any

from numba import types
from numba.extending import intrinsic

from .jit import device
from .lanes import I16, I32, I64, Lanes, Memory, join, transposed
from .machine import LANES


def _interleaved(rows: list[Lanes]) -> list[Lanes]:
    """16 vectors of 4 words -> 4 vectors of 16 rows."""
    return transposed([join([rows[4 * q + j] for q in range(4)]) for j in range(4)])


def _copier(emit) -> Any:
    """The intrinsic copy(rows, at, target) on offset `at` of 16 rows, whose addresses lie at `rows`."""

    @intrinsic
    def copy(typing, rows, at, target):
        def codegen(context, builder, signature, a):
            table = Memory(builder, a[0])
            places = [Memory(builder, (table + 8 * r).load(I64).value).moved(a[1]) for r in range(LANES)]
            emit(places, Memory(builder, a[2]))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3), codegen

    return copy


def _four_words(places: list[Memory], target: Memory) -> None:
    for word, lanes in enumerate(_interleaved([place.load(I32, 4) for place in places])):
        (target + 4 * LANES * word).store(lanes)


def _eight_halves(places: list[Memory], target: Memory) -> None:
    for word, lanes in enumerate(_interleaved([place.load(I32, 4) for place in places])):
        (target + 4 * LANES * word).store(lanes.narrow(I16))
        (target + (4 * LANES * word + 2 * LANES)).store((lanes >> 16).narrow(I16))


def _one(element):
    def emit(places: list[Memory], target: Memory) -> None:
        for r, place in enumerate(places):
            (target + element.width // 8 * r).store(place.load(element))

    return emit


_copy_four_words, _copy_eight_halves = _copier(_four_words), _copier(_eight_halves)
_copy_word, _copy_half = _copier(_one(I32)), _copier(_one(I16))


@device
def interleave_group(rows, blocks, block_bytes, half, target):
    """16 rows at the addresses in `rows` -> one group; `half`: offset of a block's 2-byte field, or -1."""
    if block_bytes == 2:  # rows of 16-bit numbers
        for i in range(0, blocks - 7, 8):
            _copy_eight_halves(rows, 2 * i, target + 32 * i)
        for i in range(blocks & -8, blocks):
            _copy_half(rows, 2 * i, target + 32 * i)
        return
    if block_bytes == 4:  # rows of 32-bit numbers: one long block
        blocks, block_bytes = 1, 4 * blocks
    words = block_bytes // 4
    first = 2 if half == 0 else 0
    plane = target + blocks * words * 64
    for block in range(blocks):
        at, out = block * block_bytes + first, target + block * words * 64
        for word in range(0, words - 3, 4):
            _copy_four_words(rows, at + 4 * word, out + 64 * word)
        for word in range(words & -4, words):
            _copy_word(rows, at + 4 * word, out + 64 * word)
        if half >= 0:
            _copy_half(rows, block * block_bytes + half, plane + 32 * block)
