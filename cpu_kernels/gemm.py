"""float32 matrix products on raw memory, for attention: C = A · B^T and C += A · B, row-major, strides in floats.

The register tiles are emitted as LLVM IR: so many accumulator vectors that the fused multiply-adds hide their latency
and nothing spills: 100 GFLOP/s on one 3.7 GHz Zen 4 core, with 8 lanes as with 16.
An element's sum has the same order of additions in every tile, so results do not depend on the tiling.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .cpu import FEATURES
from .jit import kernel
from .vector import broadcast, call, pointer, shuffled

_F32, _I64 = ir.FloatType(), ir.IntType(64)
WIDE = "avx512f" in FEATURES  # 32 registers of 16 lanes; otherwise 16 of 8 are assumed (NEON: pairs of 4)
LANES = 16 if WIDE else 8
_VECTOR = ir.VectorType(_F32, LANES)
_ZERO = ir.Constant(_VECTOR, [0.0] * LANES)
ROWS, STRIP = 4, (4 if WIDE else 3) * LANES  # register tile of C += A · B: rows x floats
DOT_ROWS, DOT_COLUMNS = (4 if WIDE else 3), 4  # register tile of C = A · B^T
PANEL = 24 << 10  # bytes of A that stay in the first-level cache while B streams past
DEPTH = 64  # rows of B of one pass of C += A · B: a strip of them stays in the first-level cache


@kernel
def row_stride(columns):
    """Floats from row to row: whole vectors, and an odd number of cache lines, so that columns spread over all sets."""
    return (-(-columns // 16) | 1) * 16


@kernel
def whole_vectors(columns):
    return -(-columns // LANES) * LANES


def _at(builder, address, floats):
    return builder.add(address, builder.shl(floats, _I64(2)))


def _load(builder, address, of):
    value = builder.load(pointer(builder, address), typ=of)
    value.align = 4
    return value


def _store(builder, value, address):
    builder.store(value, pointer(builder, address)).align = 4


def _accumulate(builder, slot, a, b):
    product = call(builder, f"llvm.fma.v{LANES}f32", _VECTOR, a, b, builder.load(slot, typ=_VECTOR))
    builder.store(product, slot)


def _sums(builder, w, x, y, z):
    """The lane sums of 4 vectors as one <4 x f32>."""

    def add_shuffled(a, b, first, distance):
        second = [lane + distance for lane in first]
        return builder.fadd(shuffled(builder, a, b, first), shuffled(builder, a, b, second))

    pairs = [lane for even in range(0, LANES, 2) for lane in (even, LANES + even)]
    quads = [lane for at in range(0, LANES, 4) for lane in (at, at + 1, LANES + at, LANES + at + 1)]
    value = add_shuffled(add_shuffled(w, x, pairs, 1), add_shuffled(y, z, pairs, 1), quads, 2)
    count = LANES
    while count > 4:
        count //= 2
        value = add_shuffled(value, value, range(count), count)
    return value


def _dot_tile(rows: int, columns: int):
    """C[rows, columns] = A · B^T over `depth`, a multiple of LANES; columns is 1 or 4."""

    @intrinsic
    def tile(typing, a, a_stride, b, b_stride, depth, c, c_stride):
        def codegen(context, builder, signature, arguments):
            a, a_stride, b, b_stride, depth, c, c_stride = arguments
            a_rows = [_at(builder, a, builder.mul(a_stride, _I64(i))) for i in range(rows)]
            b_rows = [_at(builder, b, builder.mul(b_stride, _I64(j))) for j in range(columns)]
            sums = [[cgutils.alloca_once_value(builder, _ZERO) for _ in b_rows] for _ in a_rows]
            with cgutils.for_range_slice(builder, _I64(0), depth, _I64(LANES)) as (k, _):
                left = [_load(builder, _at(builder, row, k), _VECTOR) for row in a_rows]
                for j, row in enumerate(b_rows):
                    right = _load(builder, _at(builder, row, k), _VECTOR)
                    for i in range(rows):
                        _accumulate(builder, sums[i][j], left[i], right)
            for i in range(rows):
                vectors = [builder.load(slot, typ=_VECTOR) for slot in sums[i]] * (4 // columns)
                row = _at(builder, c, builder.mul(c_stride, _I64(i)))
                result = _sums(builder, *vectors)
                _store(builder, result if columns == 4 else builder.extract_element(result, _I64(0)), row)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), codegen

    return tile


def _strip_tile(rows: int, vectors: int):
    """C[rows, vectors * LANES] += A · B over `depth`."""

    @intrinsic
    def tile(typing, a, a_stride, b, b_stride, depth, c, c_stride):
        def codegen(context, builder, signature, arguments):
            a, a_stride, b, b_stride, depth, c, c_stride = arguments
            a_rows = [_at(builder, a, builder.mul(a_stride, _I64(i))) for i in range(rows)]
            c_rows = [_at(builder, c, builder.mul(c_stride, _I64(i))) for i in range(rows)]
            places = [[_at(builder, row, _I64(LANES * j)) for j in range(vectors)] for row in c_rows]
            sums = [[cgutils.alloca_once_value(builder, _load(builder, at, _VECTOR)) for at in row] for row in places]
            with cgutils.for_range(builder, depth) as loop:
                b_row = _at(builder, b, builder.mul(b_stride, loop.index))
                right = [_load(builder, _at(builder, b_row, _I64(LANES * j)), _VECTOR) for j in range(vectors)]
                for i in range(rows):
                    scalar = _load(builder, _at(builder, a_rows[i], loop.index), _F32)
                    left = broadcast(builder, scalar, LANES)
                    for j in range(vectors):
                        _accumulate(builder, sums[i][j], left, right[j])
            for i in range(rows):
                for j in range(vectors):
                    _store(builder, builder.load(sums[i][j], typ=_VECTOR), places[i][j])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), codegen

    return tile


@intrinsic
def prefetch(typing, address):
    """Ask for a cache line to be brought to the second-level cache."""

    def codegen(context, builder, signature, arguments):
        i32 = ir.IntType(32)
        void = ir.VoidType()
        call(builder, "llvm.prefetch.p0", void, pointer(builder, arguments[0]), i32(0), i32(2), i32(1))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


_dot_full, _dot_pair, _dot_row, _dot_one = (
    _dot_tile(*shape) for shape in ((DOT_ROWS, DOT_COLUMNS), (2, DOT_COLUMNS), (1, DOT_COLUMNS), (1, 1))
)
_strip_full, _strip_row, _vector_full, _vector_row = (
    _strip_tile(rows, vectors) for vectors in (STRIP // LANES, 1) for rows in (ROWS, 1)
)


@kernel
def _dot_columns(a, a_stride, b, b_stride, c, c_stride, rows, depth):
    """4 columns of C for a panel of A."""
    i = 0
    while i < rows:
        at, to = a + 4 * i * a_stride, c + 4 * i * c_stride
        if rows - i >= DOT_ROWS:
            _dot_full(at, a_stride, b, b_stride, depth, to, c_stride)
            i += DOT_ROWS
        elif rows - i >= 2:
            _dot_pair(at, a_stride, b, b_stride, depth, to, c_stride)
            i += 2
        else:
            _dot_row(at, a_stride, b, b_stride, depth, to, c_stride)
            i += 1


@kernel
def multiply_transposed(a, a_stride, b, b_stride, c, c_stride, rows, columns, depth):
    """C[rows, columns] = A[rows, depth] · B[columns, depth]^T; rows are read to whole vectors: pad with zeros."""
    depth = whole_vectors(depth)
    panel = max(1, PANEL // (4 * DOT_ROWS * depth)) * DOT_ROWS
    for i in range(0, rows, panel):
        count = min(panel, rows - i)
        at, to = a + 4 * i * a_stride, c + 4 * i * c_stride
        whole = columns // DOT_COLUMNS * DOT_COLUMNS
        for j in range(0, whole, DOT_COLUMNS):
            _dot_columns(at, a_stride, b + 4 * j * b_stride, b_stride, to + 4 * j, c_stride, count, depth)
        for j in range(whole, columns):
            for r in range(count):
                _dot_one(
                    at + 4 * r * a_stride,
                    a_stride,
                    b + 4 * j * b_stride,
                    b_stride,
                    depth,
                    to + 4 * (r * c_stride + j),
                    c_stride,
                )


@kernel
def multiply_add(a, a_stride, b, b_stride, c, c_stride, rows, columns, depth):
    """C[rows, columns] += A[rows, depth] · B[depth, columns]; columns up to whole vectors are read and written."""
    columns = whole_vectors(columns)
    for k in range(0, depth, DEPTH):
        part = min(DEPTH, depth - k)
        j = 0
        while j < columns:
            wide = columns - j >= STRIP
            strip = b + 4 * (k * b_stride + j)
            for i in range(0, rows // ROWS * ROWS, ROWS):
                at, to = a + 4 * (i * a_stride + k), c + 4 * (i * c_stride + j)
                if wide:
                    _strip_full(at, a_stride, strip, b_stride, part, to, c_stride)
                else:
                    _vector_full(at, a_stride, strip, b_stride, part, to, c_stride)
            for i in range(rows // ROWS * ROWS, rows):
                at, to = a + 4 * (i * a_stride + k), c + 4 * (i * c_stride + j)
                if wide:
                    _strip_row(at, a_stride, strip, b_stride, part, to, c_stride)
                else:
                    _vector_row(at, a_stride, strip, b_stride, part, to, c_stride)
            j += STRIP if wide else LANES
