"""GFLOP/s of latent attention: absorbed at one token (decode), expanded at 512 (prefill).

python -m benchmarks.attention [--threads 1,2] [--depth 4096] [--repeat 7]

Each line stands under its ceiling: the register tiles alone on the same threads, measured between the runs, because a
shared machine drifts. One JSON document with everything comes last, on stdout; the table goes to stderr.
"""

import argparse
import json
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np

from cpu_kernels import Pool, cache_layer, mla_absorbed, mla_expanded, write_cache
from cpu_kernels.atomic import load_i64
from cpu_kernels.gemm import multiply_transposed, row_stride
from cpu_kernels.jit import job

MODELS = {"DeepSeek-V3": 128, "lite": 16}  # heads
LATENT, ROPE, NOPE, VALUE = 512, 64, 128, 128
PROMPT = 512
TILE_ROWS, TILE_COLUMNS, TILE_REPEATS = 32, 64, 200


@job
def _tiles(arguments, thread, threads):
    """Products whose operands stay in the second-level cache, each thread on its own memory."""
    mine = thread * load_i64(arguments + 24)
    q, k, s = load_i64(arguments) + mine, load_i64(arguments + 8) + mine, load_i64(arguments + 16) + mine
    stride = row_stride(LATENT + ROPE)
    for _ in range(TILE_REPEATS):
        multiply_transposed(q, stride, k, stride, s, row_stride(TILE_COLUMNS), TILE_ROWS, TILE_COLUMNS, LATENT + ROPE)


def tile_speed(pool: Pool) -> float:
    """FLOP/s of the register tiles on all threads of the pool."""
    size = 4 * TILE_COLUMNS * int(row_stride(LATENT + ROPE))  # bytes, enough for each of the three operands
    memory = np.zeros((3, pool.threads, size // 4), np.float32)
    arguments = np.array([*(part.ctypes.data for part in memory), size], np.int64)
    start = perf_counter()
    pool.run(_tiles.address, arguments)
    seconds = perf_counter() - start
    return 2 * pool.threads * TILE_REPEATS * TILE_ROWS * TILE_COLUMNS * (LATENT + ROPE) / seconds


def filled_layer(pool: Pool, depth: int, kv: str) -> tuple[np.ndarray, np.ndarray]:
    """A layer with `depth` random tokens in shuffled pages, and its block table."""
    rng, pages = np.random.default_rng(0), -(-depth // 64)
    layer, table = cache_layer(pages, kv, LATENT + ROPE), rng.permutation(pages).astype(np.int32)
    values = rng.standard_normal((pages * 64, LATENT + ROPE), dtype=np.float32)
    write_cache(pool, layer, values[:, :LATENT], values[:, LATENT:], np.arange(pages * 64))
    return layer, table[None, :]


def decode(pool: Pool, heads: int, depth: int, kv: str) -> tuple[Callable[[], object], int]:
    """One token at `depth`: the call, and its floating point operations."""
    layer, table = filled_layer(pool, depth, kv)
    rng = np.random.default_rng(1)
    q, q_rope = (rng.standard_normal((1, heads, part), dtype=np.float32) for part in (LATENT, ROPE))
    sequence, positions = np.zeros(1, np.int32), np.array([depth - 1], np.int32)
    flops = 2 * depth * heads * (2 * LATENT + ROPE)
    return lambda: mla_absorbed(pool, q, q_rope, layer, table, sequence, positions, 0.07), flops


def prefill(pool: Pool, heads: int, depth: int, kv: str) -> tuple[Callable[[], object], int]:
    """The last PROMPT tokens of `depth`."""
    layer, table = filled_layer(pool, depth, kv)
    rng = np.random.default_rng(2)
    q = rng.standard_normal((PROMPT, heads, NOPE + ROPE), dtype=np.float32)
    k_up, v_up = (rng.standard_normal((heads, rows, LATENT), dtype=np.float32) * 0.04 for rows in (NOPE, VALUE))
    positions = np.arange(depth - PROMPT, depth, dtype=np.int32)
    pairs = int(positions.sum()) + PROMPT  # of a query and a key that it sees
    flops = 2 * heads * (depth * LATENT * (NOPE + VALUE) + pairs * (NOPE + ROPE + VALUE))
    return lambda: mla_expanded(pool, q, k_up, v_up, layer, table[0], positions, 0.07), flops


def measure(pool: Pool, run: Callable[[], object], repeat: int) -> tuple[list[float], list[float]]:
    """Seconds of the runs, and FLOP/s of the tiles beside each."""
    run()
    seconds, ceilings = [], []
    for _ in range(repeat):
        start = perf_counter()
        run()
        seconds.append(perf_counter() - start)
        ceilings.append(tile_speed(pool))
    return seconds, ceilings


def report(result: dict[str, object], flops: int, seconds: list[float], ceilings: list[float]) -> dict[str, object]:
    speed, best, ceiling = flops / median(seconds) / 1e9, flops / min(seconds) / 1e9, median(ceilings) / 1e9
    print(
        f"{result['part']:8} {result['model']:12} kv={result['kv']:5} depth {result['depth']:6} "
        f"{result['threads']} threads  ceiling {ceiling:6.1f}  median {speed:6.1f} ({speed / ceiling:4.0%})  "
        f"best {best:6.1f} GFLOP/s  {median(seconds) * 1e3:8.2f} ms",
        file=sys.stderr,
    )
    milliseconds = median(seconds) * 1e3
    return result | {"gflops": speed, "gflops_best": best, "gflops_ceiling": ceiling, "milliseconds": milliseconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--depth", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    if options.depth < PROMPT:
        parser.error(f"--depth {options.depth} is less than the {PROMPT} tokens of the prompt")
    results = []
    for threads in map(int, options.threads.split(",")):
        with Pool(threads) as pool:
            for model, heads in MODELS.items():
                for part, make, kvs in (("decode", decode, ("f16", "q8_0", "f32")), ("prefill", prefill, ("f16",))):
                    for kv in kvs:
                        run, flops = make(pool, heads, options.depth, kv)
                        seconds, ceilings = measure(pool, run, options.repeat if part == "decode" else 2)
                        case = {"part": part, "model": model, "kv": kv, "depth": options.depth, "threads": threads}
                        results.append(report(case, flops, seconds, ceilings))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
