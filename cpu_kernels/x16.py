"""The x16 layout: 16 rows of a GGUF tensor interleaved word by word: a vector holds 16 rows' bytes side by side.

A group of 16 rows whose rows are B blocks of W words of 4 bytes, and one field of 2 bytes (most formats' scale):
    [block 0..B-1][row 0..15] 2 bytes, where there is such a field | [block 0..B-1][word 0..W-1][row 0..15] 4 bytes
The words of a block stand in the order in which a kernel first needs them (Format.ORDER); the 2-byte fields, of which
a line of memory serves two blocks, in front, where they can be asked for at once: so memory is read strictly forwards.
One core of a Zen 4 reads Q6_K at 28 GB/s then; with the words as in the file 13, with the 2-byte fields behind 8.
The same bytes as in the file, in another order. Where rows do not fill the last group its last row is repeated.
"""

from collections.abc import Callable
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
    """The intrinsic copy(rows, at, target, order) on offset `at` of 16 rows, whose addresses lie at `rows`.

    `order`: address of the places of the words that are copied, in words of 16 rows from `target`.
    """

    @intrinsic
    def copy(typing, rows, at, target, order):
        def codegen(context, builder, signature, a):
            table, target, order = Memory(builder, a[0]), Memory(builder, a[2]), Memory(builder, a[3])
            places = [Memory(builder, (table + 8 * r).load(I64).value).moved(a[1]) for r in range(LANES)]

            def word(index: int) -> Memory:
                return target.moved(builder.mul((order + 8 * index).load(I64).value, I64(4 * LANES)))

            emit(places, target, word)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    return copy


Place = Callable[[int], Memory]  # of a word that is copied


def _four_words(places: list[Memory], target: Memory, word: Place) -> None:
    for i, lanes in enumerate(_interleaved([place.load(I32, 4) for place in places])):
        word(i).store(lanes)


def _one_word(places: list[Memory], target: Memory, word: Place) -> None:
    at = word(0)
    for r, place in enumerate(places):
        (at + 4 * r).store(place.load(I32))


def _eight_halves(places: list[Memory], target: Memory, word: Place) -> None:
    for i, lanes in enumerate(_interleaved([place.load(I32, 4) for place in places])):
        (target + 4 * LANES * i).store(lanes.narrow(I16))
        (target + (4 * LANES * i + 2 * LANES)).store((lanes >> 16).narrow(I16))


def _one_half(places: list[Memory], target: Memory, word: Place) -> None:
    for r, place in enumerate(places):
        (target + 2 * r).store(place.load(I16))


_copy_four_words, _copy_eight_halves = _copier(_four_words), _copier(_eight_halves)
_copy_word, _copy_half = _copier(_one_word), _copier(_one_half)


@device
def interleave_group(rows, blocks, block_bytes, half, order, target):
    """16 rows at the addresses in `rows` -> one group.

    `half`: offset of a block's 2-byte field, or -1; `order`: address of the place of each of a block's words (int64).
    """
    if block_bytes == 2:  # rows of 16-bit numbers
        for i in range(0, blocks - 7, 8):
            _copy_eight_halves(rows, 2 * i, target + 32 * i, order)
        for i in range(blocks & -8, blocks):
            _copy_half(rows, 2 * i, target + 32 * i, order)
        return
    if block_bytes == 4:  # rows of 32-bit numbers, four of them at a time as a block
        for i in range(0, blocks - 3, 4):
            _copy_four_words(rows, 4 * i, target + 64 * i, order)
        for i in range(blocks & -4, blocks):
            _copy_word(rows, 4 * i, target + 64 * i, order)
        return
    words = block_bytes // 4
    first = 2 if half == 0 else 0
    body = target + blocks * 32 if half >= 0 else target
    for block in range(blocks):
        at, out = block * block_bytes + first, body + block * words * 64
        for word in range(0, words - 3, 4):
            _copy_four_words(rows, at + 4 * word, out, order + 8 * word)
        for word in range(words & -4, words):
            _copy_word(rows, at + 4 * word, out, order + 8 * word)
        if half >= 0:
            _copy_half(rows, block * block_bytes + half, target + 32 * block, order)
