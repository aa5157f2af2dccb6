"""The latent KV cache: per layer a pool of 64-token pages, a row of C + R values per token, as f32, f16 or q8_0.

C = 512 latent values, R = 64 rotated key values shared by all heads. A slot is page * 64 + offset in the page. q8_0 is
ggml's: blocks of 32 values, a float16 scale and 32 signed bytes.
"""

from typing import Literal

import numpy as np
from numba import carray, types
from numba.extending import overload

from .half import float_to_half, half_to_float
from .jit import entry, fast_kernel, job, kernel
from .matrix import address
from .memory import f32_at, i64_at, u8_at, u16_at
from .pool import Pool
from .rows import check_floats, share
from .simd import f32_from_i32, i32_from_i8, load_i8x8, load_u16, store

PAGE = 64  # tokens; fixed: every kernel and the files of saved sessions depend on it
BLOCK, BLOCK_BYTES = 32, 34
KINDS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.uint8): 2}  # as kernels know them


def cache_layer(pages: int, kv: Literal["f32", "f16", "q8_0"], width: int) -> np.ndarray:
    """Zeros [pages, 64, width], or [pages, 64, width / 32 * 34] bytes for q8_0."""
    if kv == "q8_0":
        if width % BLOCK:
            raise ValueError(f"cache_layer: q8_0 needs a width in multiples of {BLOCK}, got {width}")
        return np.zeros((pages, PAGE, width // BLOCK * BLOCK_BYTES), np.uint8)
    if kv not in ("f32", "f16"):
        raise ValueError(f"cache_layer: unknown cache type {kv!r}")
    return np.zeros((pages, PAGE, width), np.float32 if kv == "f32" else np.float16)


def cache_width(layer: np.ndarray) -> int:
    """Values per token, C + R."""
    return layer.shape[2] // BLOCK_BYTES * BLOCK if layer.dtype == np.uint8 else layer.shape[2]


def _rows(layer: np.ndarray, verb: str) -> np.ndarray:
    """The layer as [slots, values or bytes] for kernels, float16 as its bit patterns."""
    if layer.ndim != 3 or layer.shape[1] != PAGE or not layer.flags.c_contiguous:
        raise ValueError(f"{verb}: a cache layer is a contiguous [pages, {PAGE}, width], got {layer.shape}")
    if layer.dtype not in (np.float32, np.float16, np.uint8):
        raise ValueError(f"{verb}: a cache layer is float32, float16 or uint8 (q8_0), got {layer.dtype}")
    rows = layer.reshape(-1, layer.shape[2])
    return rows.view(np.uint16) if layer.dtype == np.float16 else rows


@kernel
def _write_f32(values, row):
    for i in range(values.size):
        row[i] = values[i]


@kernel
def _write_f16(values, row):
    for i in range(values.size):
        row[i] = float_to_half(values[i])


@fast_kernel
def _write_q8_0(values, row):
    """As ggml's quantize_row_q8_0_ref, bit for bit: the unrounded scale divides, halves round away from zero.

    A NaN, which ggml drops, becomes the block's scale: every value of the block is NaN.
    """
    patterns = values.view(np.int32)
    for block in range(values.size // BLOCK):
        peak = np.int32(0)  # the largest |x| by its bit pattern: ordered like the numbers, and NaN is above Inf
        for i in range(block * BLOCK, (block + 1) * BLOCK):
            peak = max(peak, patterns[i] & np.int32(0x7FFFFFFF))
        largest = np.int32(peak).view(np.float32)
        scale = largest / np.float32(127.0)
        inverse = np.float32(1.0) / scale if scale != 0 else np.float32(0.0)
        at = block * BLOCK_BYTES
        bits = float_to_half(scale)
        row[at], row[at + 1] = bits & np.uint16(0xFF), bits >> np.uint16(8)
        for i in range(BLOCK):
            scaled = values[block * BLOCK + i] * inverse
            whole = np.floor(abs(scaled))
            whole += np.floor(np.float32(2.0) * (abs(scaled) - whole))
            row[at + 2 + i] = np.uint8(np.int32(whole if scaled >= 0 else -whole))


@kernel
def _read_f32(row, values):
    for i in range(values.size):
        values[i] = row[i]


@kernel
def _read_f16(row, values):
    for i in range(values.size):
        values[i] = half_to_float(row[i])


@kernel
def _read_q8_0(row, values):
    for block in range(values.size // BLOCK):
        at, to = row.ctypes.data + block * BLOCK_BYTES, values.ctypes.data + 4 * block * BLOCK
        scale = half_to_float(np.uint16(load_u16(at)))
        for i in range(0, BLOCK, 8):
            store(to + 4 * i, f32_from_i32(i32_from_i8(load_i8x8(at + 2 + i))) * scale)


_WRITE = {types.float32: _write_f32, types.uint16: _write_f16, types.uint8: _write_q8_0}
_READ = {types.float32: _read_f32, types.uint16: _read_f16, types.uint8: _read_q8_0}


def write_row(values, row):
    """For kernels: store float32 values as the cache type that the row's dtype stands for."""


def read_row(row, values):
    """For kernels: the inverse of `write_row`."""


@overload(write_row)
def _overload_write_row(values, row):
    write = _WRITE[row.dtype]
    return lambda values, row: write(values, row)


@overload(read_row)
def _overload_read_row(row, values):
    read = _READ[row.dtype]
    return lambda row, values: read(row, values)


# The int64 arguments of writing. Strides and row sizes are in bytes; SCRATCH holds a row of values for each thread.
(JOB, ROWS, KIND, ROW_BYTES, WIDTH, LATENT, LATENT_STRIDE, ROPE, ROPE_STRIDE, SLOTS, TOKENS, SPLIT,
 SCRATCH) = range(13)  # fmt: skip


@kernel
def _store_row(kind, at, row_bytes, values):
    if kind == 0:
        write_row(values, carray(f32_at(at), (values.size,)))
    elif kind == 1:
        write_row(values, carray(u16_at(at), (values.size,)))
    else:
        write_row(values, carray(u8_at(at), (row_bytes,)))


@job
def _write_job(arguments, thread, threads):
    a = carray(i64_at(arguments), (SCRATCH + 1,))
    width, split = a[WIDTH], a[SPLIT]
    values = carray(f32_at(a[SCRATCH] + 4 * width * thread), (width,))
    slots = carray(i64_at(a[SLOTS]), (a[TOKENS],))
    for t in range(a[TOKENS] * thread // threads, a[TOKENS] * (thread + 1) // threads):
        latent = carray(f32_at(a[LATENT] + t * a[LATENT_STRIDE]), (split,))
        rope = carray(f32_at(a[ROPE] + t * a[ROPE_STRIDE]), (width - split,))
        for i in range(split):
            values[i] = latent[i]
        for i in range(split, width):
            values[i] = rope[i - split]
        _store_row(a[KIND], a[ROWS] + slots[t] * a[ROW_BYTES], a[ROW_BYTES], values)


@entry
def _write(control, arguments):
    a = carray(i64_at(arguments), (SCRATCH + 1,))
    share(control, a[JOB], arguments, a[TOKENS] * a[WIDTH])


@kernel
def _read(rows, slots, out):
    for t in range(slots.size):
        read_row(rows[slots[t]], out[t])


def _check_slots(slots: np.ndarray, rows: np.ndarray, tokens: int, verb: str) -> None:
    if slots.shape != (tokens,) or slots.dtype != np.int64 or not slots.flags.c_contiguous:
        raise ValueError(f"{verb}: slots must be contiguous int64 [{tokens}], got {slots.dtype} {slots.shape}")
    if tokens and not (slots.min() >= 0 and slots.max() < len(rows)):
        raise ValueError(f"{verb}: slots {slots.min()} to {slots.max()} in a layer of {len(rows)}")


def write_cache(pool: Pool, layer: np.ndarray, latent: np.ndarray, rope_key: np.ndarray, slots: np.ndarray) -> None:
    """Store latent[T, C] and rope_key[T, R] (rows may be strided) at slots int64 [T], each another one."""
    rows, width = _rows(layer, "write_cache"), cache_width(layer)
    if latent.ndim != 2 or rope_key.ndim != 2 or latent.shape[1] + rope_key.shape[1] != width:
        raise ValueError(f"write_cache: latent {latent.shape} and rope key {rope_key.shape} for rows of {width} values")
    check_floats("write_cache", latent=latent, rope_key=rope_key)
    if len(latent) != len(rope_key):
        raise ValueError(f"write_cache: {len(latent)} latents and {len(rope_key)} rope keys")
    _check_slots(slots, rows, len(latent), "write_cache")
    parts = [address(latent), latent.strides[0], address(rope_key), rope_key.strides[0], address(slots)]
    scratch = pool.scratch(4 * width * pool.threads)
    call = [_write_job.address, address(layer), KINDS[layer.dtype], layer.strides[1], width, *parts, *latent.shape]
    pool.call(_write.address, np.array([*call, scratch], np.int64), layer, latent, rope_key, slots)


def read_cache(layer: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """float32 [n, C + R] of slots int64 [n]."""
    rows = _rows(layer, "read_cache")
    _check_slots(slots, rows, slots.size, "read_cache")
    out = np.empty((slots.size, cache_width(layer)), np.float32)
    _read(rows, slots, out)
    return out
