"""GB/s and GFLOP/s of every weight format, and of one MoE layer of lite, under the measured read bandwidth.

python -m benchmarks.kernels [--types Q4_K,Q6_K] [--columns 1,4,16,64] [--threads 1,2] [--rows 256] [--seconds 0.3]

Best of many runs, because the machine is shared. One JSON document comes last, on stdout; the table goes to stderr.
"""

import argparse
import json
import sys
from collections.abc import Callable
from itertools import cycle
from time import perf_counter

import numpy as np

from cpu_kernels import SUPPORTED, Matrix, Pool, linear, routed_experts
from cpu_kernels.atomic import load_i64
from cpu_kernels.jit import job
from cpu_kernels.simd import load_f32x8, reduce_add, splat_f32x8, store
from tests.random_weights import random_weights

ROW = 7168  # V3's hidden size
LITE = {"experts": 64, "used": 6, "hidden": 1408, "columns": 2048, "types": ("Q4_K", "Q4_K", "Q5_0")}
READ_BYTES, WINDOW_BYTES = 512 << 20, 32 << 20


@job
def _read(arguments, thread, threads):
    """Add up all of this thread's share of memory: four vectors at a time, in four chains."""
    start, size = load_i64(arguments), load_i64(arguments + 8)
    a = b = c = d = splat_f32x8(np.float32(0.0))
    for at in range(start + size * thread // threads, start + size * (thread + 1) // threads, 128):
        a, b = a + load_f32x8(at), b + load_f32x8(at + 32)
        c, d = c + load_f32x8(at + 64), d + load_f32x8(at + 96)
    store(arguments + 16 + 8 * thread, reduce_add((a + b) + (c + d)))


def best_seconds(call: Callable[[], object], seconds: float) -> float:
    """The quickest of at least 3 runs, for so long."""
    call()
    best, runs, end = float("inf"), 0, perf_counter() + seconds
    while runs < 3 or perf_counter() < end:
        start = perf_counter()
        call()
        best, runs = min(best, perf_counter() - start), runs + 1
    return best


def read_bandwidth(pool: Pool, seconds: float) -> float:
    """Of windows of 32 MiB out of 512: short enough for a quiet moment, and never still in a cache."""
    memory = np.ones(READ_BYTES, np.uint8)
    arguments = np.zeros(2 + pool.threads, np.int64)
    windows = cycle(range(memory.ctypes.data, memory.ctypes.data + READ_BYTES, WINDOW_BYTES))

    def call() -> None:
        arguments[:2] = next(windows), WINDOW_BYTES
        pool.run(_read.address, arguments)

    return WINDOW_BYTES / best_seconds(call, seconds)


def products(pool: Pool, type: str, rows: int, columns: list[int], seconds: float) -> list[dict]:
    rng = np.random.default_rng(0)
    matrix = Matrix(random_weights(type, (rows, ROW), rng), type, ROW)
    results = []
    for count in columns:
        x, out = rng.standard_normal((count, ROW), np.float32), np.empty((count, rows), np.float32)
        best = best_seconds(lambda x=x, out=out: linear(pool, matrix, x, out), seconds)
        rates = {"bytes_per_second": matrix.data.nbytes / best, "flops_per_second": 2 * rows * ROW * count / best}
        results.append({"type": type, "threads": pool.threads, "columns": count, **rates})
    return results


def expert_layer() -> tuple[list[Matrix], float]:
    """Gate, up and down of one layer, far larger than any cache; bytes of an expert."""
    rng = np.random.default_rng(0)
    shapes = [(LITE["hidden"], LITE["columns"])] * 2 + [(LITE["columns"], LITE["hidden"])]
    matrices = []
    for type, (rows, columns) in zip(LITE["types"], shapes, strict=True):
        one = random_weights(type, (rows, columns), rng)
        matrices.append(Matrix(np.repeat(one[None], LITE["experts"], axis=0), type, columns))
    return matrices, sum(matrix.data.nbytes for matrix in matrices) / LITE["experts"]


def experts(pool: Pool, tokens: int, layer: tuple[list[Matrix], float], seconds: float) -> dict:
    (gate, up, down), expert_bytes = layer
    rng = np.random.default_rng(1)
    x, weights = rng.standard_normal((tokens, gate.columns), np.float32), np.ones((tokens, LITE["used"]), np.float32)

    def call() -> None:  # other experts in each run: from memory, not from the cache
        ids = rng.random((tokens, gate.count)).argsort(axis=1)[:, : LITE["used"]].astype(np.int32)
        routed_experts(pool, gate, up, down, x, np.ascontiguousarray(ids), weights)

    best = best_seconds(call, seconds)
    touched = min(gate.count, tokens * LITE["used"])
    flops = 6 * tokens * LITE["used"] * gate.rows * gate.columns
    rates = {"bytes_per_second": touched * expert_bytes / best, "flops_per_second": flops / best}
    return {"type": "lite MoE layer", "threads": pool.threads, "columns": tokens, **rates}


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", type=lambda text: text.split(","), default=sorted(SUPPORTED))
    parser.add_argument("--columns", type=integers, default=[1, 4, 16, 64])
    parser.add_argument("--threads", type=integers, default=[1])
    parser.add_argument("--rows", type=int, default=256, help="256 rows of V3's width stay in the cache; 65536 do not")
    parser.add_argument("--seconds", type=float, default=0.3)
    options = parser.parse_args()
    results, layer = [], expert_layer()
    for threads in options.threads:
        with Pool(threads) as pool:
            bandwidth = read_bandwidth(pool, options.seconds)
            print(f"{threads} threads: read bandwidth {bandwidth / 1e9:.1f} GB/s", file=sys.stderr)
            rows = [
                r
                for type in options.types
                for r in products(pool, type, options.rows, options.columns, options.seconds)
            ]
            rows += [experts(pool, tokens, layer, options.seconds) for tokens in (1, 64)]
        for row in rows:
            speeds = f"{row['bytes_per_second'] / 1e9:7.1f} GB/s {row['flops_per_second'] / 1e9:7.1f} GFLOP/s"
            print(f"{row['type']:>14} x {row['columns']:<4}{speeds}", file=sys.stderr)
        results.append({"threads": threads, "read_bytes_per_second": bandwidth, "results": rows})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
