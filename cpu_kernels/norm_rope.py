"""Root-mean-square norm and rotary embedding. T tokens, K columns, n heads, R = 64 rotated dimensions."""

import numpy as np
from numba import carray

from .jit import entry, fast_kernel, job, kernel
from .matrix import address
from .memory import f32_at, i64_at
from .pool import Pool
from .rows import bits, check_floats, share
from .simd import fma, load_f32, load_f32x4, load_f32x8, store
from .vector import F32x4, F32x8, constant, shuffle

_swap_pairs = shuffle(F32x8, [1, 0, 3, 2, 5, 4, 7, 6])
_double = shuffle(F32x4, [0, 0, 1, 1, 2, 2, 3, 3])
_SIGNS = constant(F32x8, [-1.0, 1.0] * 4)

# The int64 arguments of the norm. EPS holds the bits of a float64; ADDEND 0: nothing to add.
JOB, X, X_STRIDE, ADDEND, ADDEND_STRIDE, WEIGHT, EPS, OUT, OUT_STRIDE, TOKENS, COLUMNS = range(11)
# Those of rope.
ROPE_JOB, ROPE_X, TOKEN_STRIDE, HEAD_STRIDE, ROPE_TOKENS, HEADS, PAIRS, COS, COS_STRIDE, SIN, SIN_STRIDE = range(11)


@fast_kernel
def _add_row(row, addend):
    for k in range(row.size):
        row[k] += addend[k]


@fast_kernel
def _norm_row(row, weight, eps, out):
    squares = 0.0  # float64: a sum over 7168 columns loses nothing
    for k in range(row.size):
        squares += np.float64(row[k]) * np.float64(row[k])
    scale = np.float32(1.0 / np.sqrt(squares / row.size + eps))
    for k in range(row.size):
        out[k] = row[k] * scale * weight[k]


@job
def _norm_job(arguments, thread, threads):
    a = carray(i64_at(arguments), (COLUMNS + 1,))
    columns, eps = a[COLUMNS], np.int64(a[EPS]).view(np.float64)
    for t in range(a[TOKENS] * thread // threads, a[TOKENS] * (thread + 1) // threads):
        row = carray(f32_at(a[X] + t * a[X_STRIDE]), (columns,))
        if a[ADDEND] != 0:
            _add_row(row, carray(f32_at(a[ADDEND] + t * a[ADDEND_STRIDE]), (columns,)))
        out = carray(f32_at(a[OUT] + t * a[OUT_STRIDE]), (columns,))
        _norm_row(row, carray(f32_at(a[WEIGHT]), (columns,)), eps, out)


@entry
def _norm(control, arguments):
    a = carray(i64_at(arguments), (COLUMNS + 1,))
    share(control, a[JOB], arguments, a[TOKENS] * a[COLUMNS])


def rms_norm(
    pool: Pool,
    x: np.ndarray,
    weight: np.ndarray,
    eps: float,
    out: np.ndarray | None = None,
    add: np.ndarray | None = None,
) -> np.ndarray:
    """x[T, K] (rows may be strided) / rms(row) * weight[K]; `out` may be x itself. First x += add[T, K], in place."""
    if x.ndim != 2 or weight.shape != x.shape[1:]:
        raise ValueError(f"rms_norm: x {x.shape} and weight {weight.shape} do not fit [T, K] and [K]")
    if out is None:
        out = pool.results.empty(x.shape)
    elif out.shape != x.shape:
        raise ValueError(f"rms_norm: out has shape {out.shape}, x {x.shape}")
    if add is not None and add.shape != x.shape:
        raise ValueError(f"rms_norm: add has shape {add.shape}, x {x.shape}")
    addend = x if add is None else add
    check_floats("rms_norm", x=x, weight=weight, out=out, add=addend)
    place = 0 if add is None else address(add)
    rows = [
        address(x),
        x.strides[0],
        place,
        addend.strides[0],
        address(weight),
        bits(eps),
        address(out),
        out.strides[0],
    ]
    pool.call(_norm.address, np.array([_norm_job.address, *rows, *x.shape], np.int64), x, weight, out, addend)
    return out


@kernel
def _rotate(row, cos, sin, pairs):
    for i in range(0, pairs // 4 * 4, 4):
        x = load_f32x8(row + 8 * i)
        turned = _swap_pairs(x) * (_double(load_f32x4(sin + 4 * i)) * _SIGNS())
        store(row + 8 * i, fma(x, _double(load_f32x4(cos + 4 * i)), turned))
    for i in range(pairs // 4 * 4, pairs):
        even, odd = load_f32(row + 8 * i), load_f32(row + 8 * i + 4)
        c, s = load_f32(cos + 4 * i), load_f32(sin + 4 * i)
        store(row + 8 * i, even * c - odd * s)
        store(row + 8 * i + 4, odd * c + even * s)


@job
def _rope_job(arguments, thread, threads):
    a = carray(i64_at(arguments), (SIN_STRIDE + 1,))
    for t in range(a[ROPE_TOKENS] * thread // threads, a[ROPE_TOKENS] * (thread + 1) // threads):
        for h in range(a[HEADS]):
            row = a[ROPE_X] + t * a[TOKEN_STRIDE] + h * a[HEAD_STRIDE]
            _rotate(row, a[COS] + t * a[COS_STRIDE], a[SIN] + t * a[SIN_STRIDE], a[PAIRS])


@entry
def _rope(control, arguments):
    a = carray(i64_at(arguments), (SIN_STRIDE + 1,))
    share(control, a[ROPE_JOB], arguments, a[ROPE_TOKENS] * a[HEADS] * a[PAIRS] * 2)


def rope(pool: Pool, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> None:
    """Rotate the pairs (2i, 2i + 1) of x[T, n, R] or x[T, R], R contiguous, in place by angles as cos, sin [T, R/2].

    DeepSeek's pairs are interleaved, in GGUF files too: no permutation of q and k as for llama.
    """
    if x.ndim == 2:
        x = x[:, None, :]
    if x.ndim != 3 or x.shape[2] % 2 or cos.shape != (x.shape[0], x.shape[2] // 2) or sin.shape != cos.shape:
        raise ValueError(f"rope: x {x.shape}, cos {cos.shape}, sin {sin.shape}; [T, n, R] and twice [T, R/2] expected")
    check_floats("rope", x=x, cos=cos, sin=sin)
    angles = [address(cos), cos.strides[0], address(sin), sin.strides[0]]
    shape = [*x.strides[:2], *x.shape[:2], x.shape[2] // 2]
    pool.call(_rope.address, np.array([_rope_job.address, address(x), *shape, *angles], np.int64), x, cos, sin)
