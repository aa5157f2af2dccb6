"""Quantized matrix times 1 to 4 vectors, weights decoded in registers and read once.

N rows, K columns, S = K / 32 sub-blocks, T vectors. A thread has one sub-block of EACH rows, which share the load of
its activations: 16 bytes of codes and 16 of activations a load, and neighbouring threads read neighbouring bytes. BS
threads side by side share a row; small matrices divide a row among more threads. Sums are taken in a fixed order: the
same input gives the same bits.
"""

import torch

from .arranged import VECTOR_COLUMNS, Arranged
from .device import Device
from .formats.words import lanes, load_each
from .jit import cdiv, jit, next_power_of_2, tl
from .matrix import Matrix

THREADS = 128
EACH, CROWDED_EACH = 4, 2  # rows of a thread; where 3 and 4 vectors would take more than 128 registers
PROGRAMS = 4  # wanted for each multiprocessor before a program takes more rows than it must


@jit
def _none():
    """A tuple to which tensors are added."""
    return ()


@jit
def _zeros(T: tl.constexpr, ROWS: tl.constexpr, BS: tl.constexpr):
    made = _none()
    for _ in tl.static_range(T):
        made += (tl.zeros([ROWS, BS], tl.float32),)
    return made


@jit
def _add_products(parts, code, values, step, s, mask, T: tl.constexpr, P: tl.constexpr, S: tl.constexpr):
    """parts + code [ROWS, BS, 4] x the values at position P of sub-blocks s, of each of T vectors."""
    w0, w1, w2, w3 = lanes(code)
    lane = tl.arange(0, 4)[None, None, :]
    added = _none()
    for t in tl.static_range(T):
        at = values + t * step + (P * 4 * S + s[:, :, None] * 4 + lane)
        if mask is None:
            x0, x1, x2, x3 = lanes(tl.load(at))
        else:
            x0, x1, x2, x3 = lanes(tl.load(at, mask=mask[:, :, None], other=0.0))
        added += (parts[t] + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3,)
    return added


@jit
def _add_scaled(totals, parts, scale, T: tl.constexpr):
    added = _none()
    for t in tl.static_range(T):
        added += (totals[t] + scale * parts[t],)
    return added


@jit
def row_tile(
    codes, high, scales, blocks, first, values, sums, step, sums_step, T: tl.constexpr, ROWS: tl.constexpr,
    BS: tl.constexpr, THREADS: tl.constexpr, S: tl.constexpr, GROUPS: tl.constexpr, HALVES: tl.constexpr,
    MINIMUM: tl.constexpr, SCALED: tl.constexpr, UNPACK: tl.constexpr, CODE: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """A tuple of T float32 [ROWS]: rows first .. first + ROWS (int64, in the planes) times T vectors.

    The four planes and the constants from S on are a Matrix's; float32 values and sums of vector t are t x step and
    t x sums_step further (Arranged). `tile` chooses ROWS and BS for programs of THREADS threads.
    """
    slot = tl.arange(0, THREADS)[None, :]
    side: tl.constexpr = THREADS // BS  # rows side by side
    each: tl.constexpr = ROWS // side
    row = (first + slot // BS) + (tl.arange(0, each) * side)[:, None]
    totals = _zeros(T, each, THREADS)
    for start in range(0, S, BS):
        s = start + slot % BS
        mask = None if S % BS == 0 else s < S
        parts = _zeros(T, each, THREADS) if SCALED else totals
        if SCALED:
            low, upper, minimum = SCALE(scales, blocks, row, s, mask, S)
        for group in tl.static_range(GROUPS):
            one, other = UNPACK(codes, high, row, s, mask, S, group)
            for p in tl.static_range(8 // GROUPS):
                code = CODE(one, other, p)
                parts = _add_products(parts, code, values, step, s, mask, T, group * (8 // GROUPS) + p, S)
                if HALVES == 2 and p == 3:
                    totals = _add_scaled(totals, parts, low, T)
                    parts = _zeros(T, each, THREADS)
        totals = _add_scaled(totals, parts, upper, T) if SCALED else parts
        if MINIMUM:
            shares = _none()
            for t in tl.static_range(T):
                shares += (load_each(sums, t * sums_step, s, mask, 1),)
            totals = _add_scaled(totals, shares, -minimum, T)
    made = _none()
    for t in tl.static_range(T):
        made += (tl.reshape(tl.sum(tl.reshape(totals[t], [each, side, BS]), axis=2), [ROWS]),)
    return made


@jit(do_not_specialize=["rows", "y_step"], do_not_specialize_on_alignment=["y"])
def _matvec_kernel(
    codes, high, scales, blocks, values, sums, y, rows, y_step, COUNT: tl.constexpr, T: tl.constexpr,
    ROWS: tl.constexpr, BS: tl.constexpr, THREADS: tl.constexpr, S: tl.constexpr, GROUPS: tl.constexpr,
    HALVES: tl.constexpr, MINIMUM: tl.constexpr, SCALED: tl.constexpr, UNPACK: tl.constexpr, CODE: tl.constexpr,
    SCALE: tl.constexpr,
):  # fmt: skip
    """Program (n, m): ROWS rows of matrix m of COUNT, times vectors m, COUNT + m, ...; y[t, m, row]."""
    matrix = tl.program_id(1)
    # The last tile ends with the last row: some rows are computed twice, alike, and no load needs a mask.
    n = tl.minimum(tl.program_id(0) * ROWS, rows - ROWS)
    made = row_tile(
        codes, high, scales, blocks, matrix.to(tl.int64) * rows + n, values + matrix * 32 * S, sums + matrix * S,
        COUNT * 32 * S, COUNT * S, T, ROWS, BS, THREADS, S, GROUPS, HALVES, MINIMUM, SCALED, UNPACK, CODE, SCALE,
    )  # fmt: skip
    for t in tl.static_range(T):
        tl.store(y + t * y_step + matrix * rows + n + tl.arange(0, ROWS), made[t])


def tile(rows: int, count: int, blocks: int, sms: int, each: int = EACH) -> tuple[int, int]:
    """(ROWS, BS) for `count` matrices of so many rows and sub-blocks, on a GPU of `sms` multiprocessors.

    As few threads side by side as a warp has, so that a row is summed within a warp, and `each` rows a thread. Where
    that leaves multiprocessors without work, first more threads a row, then fewer rows a thread. ROWS <= rows.
    """
    whole = next_power_of_2(blocks)
    side = min(32, whole)
    if blocks % side and blocks % (side // 2) == 0:
        side //= 2  # no idle threads at the end of a row

    def idle() -> bool:
        return cdiv(rows, THREADS // side * each) * count < PROGRAMS * sms

    while side < THREADS and (THREADS // side > rows or (side < whole and idle())):
        side *= 2
    while each > 1 and (THREADS // side * each > rows or idle()):
        each //= 2
    return THREADS // side * each, side


def check_vectors(name: str, w: Matrix, x: Arranged) -> None:
    """float32 activations of T <= VECTOR_COLUMNS vectors for each of w's matrices."""
    wanted = (x.shape[0],) if w.count == 1 and len(x.shape) == 1 else (x.shape[0], w.count)
    if x.values.dtype != torch.float32 or x.shape != wanted or x.columns != w.columns:
        found = f"{x.values.dtype} {[*x.shape, x.columns]}"
        raise ValueError(f"{name}: x is {found}; needed is float32 {[*wanted, w.columns]}")
    if not 0 < x.shape[0] <= VECTOR_COLUMNS:
        raise ValueError(f"{name}: {x.shape[0]} vectors; 1 to {VECTOR_COLUMNS} are possible")


def result(device: Device, name: str, w: Matrix, x: Arranged, out: torch.Tensor | None) -> torch.Tensor:
    """`out` if it fits [T, N] (or [T, count, N]), its vectors possibly apart; or a new tensor."""
    shape = (*x.shape, w.rows)
    if out is None:
        return device.empty(shape)
    inner = tuple(out.stride()[1:])
    if out.dtype != torch.float32 or tuple(out.shape) != shape or inner != ((1,) if len(shape) == 2 else (w.rows, 1)):
        raise ValueError(
            f"{name}: out is {out.dtype} {list(out.shape)}, strides {out.stride()}; needed is float32 {list(shape)}"
        )
    return out


def matvec(device: Device, w: Matrix, x: Arranged, out: torch.Tensor | None = None) -> torch.Tensor:
    """x[T, K] (T <= 4, as float32) times w, transposed -> [T, N]; of several matrices: x[T, count, K] -> [T, count, N].

    `out` may be part of a wider tensor: only its vectors are contiguous.
    """
    check_vectors("matvec", w, x)
    out = result(device, "matvec", w, x, out)
    each = CROWDED_EACH if w.format and w.format.crowded and x.shape[0] > 2 else EACH
    rows, side = tile(w.rows, w.count, w.columns // 32, device.sms, each)
    grid = cdiv(w.rows, rows), w.count
    device.launch(
        _matvec_kernel, grid, *w.planes, x.values, x.sums, out, w.rows, out.stride(0),
        warps=THREADS // 32, stages=1, COUNT=w.count, T=x.shape[0], ROWS=rows, BS=side, THREADS=THREADS, **w.constants,
    )  # fmt: skip
    return out


def matvec_twin(device: Device, w: Matrix, x: Arranged, out: torch.Tensor | None = None) -> torch.Tensor:
    check_vectors("matvec", w, x)
    out = result(device, "matvec", w, x, out)
    vectors = x.plain().reshape(-1, w.count, w.columns)
    for number in range(w.count):
        weights = w.dequantized(number * w.rows, (number + 1) * w.rows)
        out.view(-1, w.count, w.rows)[:, number] = vectors[:, number] @ weights.T
    return out
