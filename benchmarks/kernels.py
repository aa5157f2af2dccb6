"""Every weight format times 1 to 512 columns, ours beside ggml's kernels, under the measured read bandwidth.

    python -m benchmarks.kernels [--types Q4_K,Q6_K] [--columns 1,4,16,64,512] [--threads 2] [--seconds 1] [--json]

Rows of DeepSeek-V3's width (7168). "memory": matrices of 256 MiB together, taken in turn, so that each is read from
memory; "cache": one small matrix again and again. ggml runs with its weights as they are and, where it can, rearranged;
the better one counts. The contenders and the read bandwidth take turns within each case, figures are medians, and
"ratio" is ggml's time over ours: the ratio of medians, and the median of the rounds' ratios. "disturbed": other
processes took a CPU away in all but a few rounds.

The table goes to stderr, one JSON document comes last, on stdout.
"""

import argparse
from collections.abc import Iterator
from itertools import cycle

import numpy as np

from benchmarks import beside_ggml
from benchmarks.ggml import Ggml, Product, aligned
from benchmarks.options import integers, names
from benchmarks.turns import Contender, take_turns
from cpu_kernels import SUPPORTED, Matrix, Pool, interleave, linear
from cpu_kernels.bandwidth import Reader
from tests.random_weights import random_weights

ROW = 7168  # values
ROTATED_BYTES = 256 << 20
ROWS = {"memory": 4096, "cache": 1024}
FROM_MEMORY = 16  # columns at most: with more, the bytes no longer matter


def copies(type: str, place: str) -> list[np.ndarray]:
    """uint8 [rows, row bytes], as many as the place needs; the same values, each in memory of its own."""
    first = random_weights(type, (ROWS[place], ROW), np.random.default_rng(0))
    count = -(-ROTATED_BYTES // first.nbytes) if place == "memory" else 1
    made = []
    for _ in range(count):
        made.append(aligned(first.nbytes).reshape(first.shape))
        made[-1][:] = first
    return made


def ours(pool: Pool, matrices: list[Matrix], x: np.ndarray) -> tuple[Contender, np.ndarray]:
    out, queue = np.empty((len(x), matrices[0].rows), np.float32), cycle(matrices)
    return Contender(lambda: linear(pool, next(queue), x, out)), out


def theirs(ggml: Ggml, products: list[Product], x: np.ndarray) -> Contender:
    for product in products:
        product.set(x)
    queue = cycle(products)
    return Contender(lambda: next(queue).compute(), rest=ggml.rest)


class Case:
    """One format at one place: all contenders' weights, for any number of columns."""

    def __init__(self, pool: Pool, ggml: Ggml, type: str, place: str, layout: str):
        self.pool, self.ggml, self.type, self.place = pool, ggml, type, place
        data = copies(type, place)
        self.rows, self.nbytes = data[0].shape[0], data[0].nbytes
        self.matrices = [Matrix(part, type, ROW) for part in data]
        if layout == "x16":
            self.matrices = [interleave(pool, matrix) for matrix in self.matrices]
        self.products = {"ggml plain": self.ggml_products(data, False)}
        if rearranged := self.ggml_products(data, True):
            self.products["ggml rearranged"] = rearranged

    def ggml_products(self, data: list[np.ndarray], repack: bool) -> list[Product]:
        made = [self.ggml.product(self.type, part, ROW, repack=repack) for part in data]
        return [product for product in made if product is not None]

    def measure(self, columns: int, reader: Reader, seconds: float) -> dict[str, object]:
        x = np.random.default_rng(1).standard_normal((columns, ROW), np.float32)
        mine, out = ours(self.pool, self.matrices, x)
        contenders = {"hetero": mine}
        contenders |= {name: theirs(self.ggml, products, x) for name, products in self.products.items()}
        contenders["read"] = Contender(reader.read)
        rounds = take_turns(contenders, seconds)
        read = self.pool.threads * reader.window / rounds.take("read")
        medians = rounds.medians()
        y = self.products["ggml plain"][0].run(x)
        self.ggml.rest()
        speed = self.nbytes / medians["hetero"]
        return {
            "type": self.type,
            "place": self.place,
            "columns": columns,
            "seconds": medians,
            "bytes_per_second": speed,
            "flops_per_second": 2 * self.rows * ROW * columns / medians["hetero"],
            "read_bytes_per_second": read,
            "share_of_read": speed / read,
            "deviation": float(np.linalg.norm(out - y) / np.linalg.norm(y)),
            **rounds.compare("hetero"),
        }

    def close(self) -> None:
        for products in self.products.values():
            for product in products:
                product.close()


def head(row: dict) -> str:
    return (
        f"{row['type']:>8} x {row['columns']:<4}{row['place']:>7}"
        f"{row['bytes_per_second'] / 1e9:8.1f} GB/s{row['flops_per_second'] / 1e9:8.1f} GFLOP/s"
        f"  of read {row['share_of_read']:5.0%}"
    )


def measure(given: argparse.Namespace, pool: Pool, ggml: Ggml, reader: Reader) -> Iterator[dict]:
    for type in given.types:
        for place in given.places:
            columns = [n for n in given.columns if place == "cache" or n <= FROM_MEMORY]
            case = Case(pool, ggml, type, place, given.layout)
            for n in columns:
                yield case.measure(n, reader, given.seconds)
            case.close()


def main() -> None:
    parser = beside_ggml.parser(__doc__, seconds=1.0)
    parser.add_argument("--types", type=names, default=sorted(SUPPORTED))
    parser.add_argument("--columns", type=integers, default=[1, 4, 16, 64, 512])
    parser.add_argument("--places", type=names, default=list(ROWS), help="memory, cache")
    beside_ggml.run(parser.parse_args(), measure, head)


if __name__ == "__main__":
    main()
