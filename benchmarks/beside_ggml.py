"""Kernels beside ggml's, in one process, under the measured read bandwidth: options, table and document."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from statistics import median

from benchmarks import options
from benchmarks.ggml import Ggml
from benchmarks.setting import setting
from benchmarks.turns import QUIET
from cpu_kernels import Pool
from cpu_kernels.bandwidth import Reader

Measure = Callable[[argparse.Namespace, Pool, Ggml, Reader], Iterable[dict]]


def parser(description: str | None, seconds: float) -> argparse.ArgumentParser:
    made = options.parser(description, seconds=seconds)
    made.add_argument("--layout", choices=["x16", "gguf"], default="x16", help="of ours; gguf: as in the file")
    made.add_argument("--json", action="store_true", help="the document alone, without the table")
    return made


def run(given: argparse.Namespace, measure: Measure, head: Callable[[dict], str]) -> None:
    """Prints the rows that `measure` yields: as a table on stderr, `head` and the comparison; a document on stdout."""
    show = (lambda text: None) if given.json else (lambda text: print(text, file=sys.stderr, flush=True))
    results = []
    with Pool(given.threads) as pool, Ggml(given.threads) as ggml:
        reader = Reader(pool)
        read = median(reader.read() for _ in range(50))
        show(f"{given.threads} threads, read bandwidth {read / 1e9:.1f} GB/s")
        for row in measure(given, pool, ggml, reader):
            results.append(row)
            show(head(row) + comparison(row))
    document = {"threads": given.threads, "layout": given.layout, "read_bytes_per_second": read, "results": results}
    print(json.dumps(document | setting()))


def comparison(row: dict) -> str:
    """The better of ggml's ways: its name, its GB/s and GFLOP/s, and how ours compares."""
    scale = row["seconds"]["hetero"] / row["seconds"][row["best_other"]]
    disturbed = "   disturbed" * (row["waited"] > QUIET)
    return (
        f"   {row['best_other']:<16}"
        f"{row['bytes_per_second'] * scale / 1e9:8.1f}{row['flops_per_second'] * scale / 1e9:8.1f}"
        f"   ratio {row['ratio_of_medians']:5.2f} {row['median_of_ratios']:5.2f}"
        f"   deviation {row['deviation']:.1e}{disturbed}"
    )
