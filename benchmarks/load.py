"""How long opening a model takes, beside what bounds it: the disk, and new memory.

    python -m benchmarks.load FILE [--rounds 3] [--weights-cache DIR]

memory   read and rearranged into memory, with the end of the file in the page cache, as a load before it leaves it
mmap     --mmap, with the file in the page cache as far as it fits
cache    a second start with --weights-cache DIR, which takes as much of the disk as the file; only where DIR is named

Each start is a process of its own, timed from its first instruction to the model being ready and to its first token.
Just before it the same run measures how fast the disk reads, how fast new memory is to be had, and what of the file is
in the page cache. The floor is what disk and memory take one after the other; "overlapped" what the slower one takes.
A virtual machine's host takes freed memory back within seconds and needs longer to hand it out again: that is waited
for, so that every start meets it. Figures are medians over the rounds.

The table goes to stderr, one JSON document comes last, on stdout.
"""

import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import monotonic, sleep

from benchmarks.floors import disk, new_memory
from benchmarks.options import names, parser
from benchmarks.setting import setting
from hetero import RunConfig, load
from hetero.arena import arena_bytes, plan
from hetero.config import ModelConfig
from hetero.free_memory import free_memory
from hetero.gguf import open_gguf
from hetero.page_cache import cached_bytes, drop
from hetero.probe import resident_bytes
from hetero.sampler import Sampling

BARS = {"memory": 15.0, "mmap": 3.0, "cache": 3.0}  # seconds until the model is ready, for 14.3 GB
MEMORY_SAMPLE = 4 << 30
SETTLE_SECONDS = 5.0
STEP_BYTES = 64 << 20
CONTEXT = 1024
BESIDE_WEIGHTS = 1 << 30  # memory that stays free of the page cache, beside weights
COLUMNS = {
    "cached_bytes": ("cached GB", 1e9, ".1f"),
    "disk_bytes_per_second": ("disk GB/s", 1e9, ".2f"),
    "new_memory_bytes_per_second": ("memory GB/s", 1e9, ".2f"),
    "floor_seconds": ("floor s", 1, ".1f"),
    "overlapped_floor_seconds": ("overlapped s", 1, ".1f"),
    "ready_seconds": ("ready s", 1, ".1f"),
    "first_token_seconds": ("token s", 1, ".1f"),
    "bytes_per_second": ("GB/s", 1e9, ".2f"),
    "beside_weights_bytes": ("beside MiB", 1 << 20, ".0f"),
}


def start(path: str, run: RunConfig, started: float) -> dict[str, float]:
    """In a process of its own, which began at `started`."""
    engine, _ = load(path, run, notice=lambda sentence: print(sentence, file=sys.stderr))
    ready = monotonic() - started
    for _ in engine.generate([0], Sampling(temperature=0.0, max_tokens=1)):
        pass
    first = monotonic() - started
    mapped = any(tensor.path is not None for tensor in engine.file.tensors.values())
    held = private_bytes() if mapped else resident_bytes()
    engine.close()
    return {"ready_seconds": ready, "first_token_seconds": first, "held_bytes": held}


def private_bytes() -> int:
    """Resident memory of this process that is no page of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def start_apart(path: str, run: RunConfig) -> dict[str, float]:
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        return executor.submit(start, path, run, monotonic()).result()


def cached_in(files: list[Path]) -> int:
    """Bytes of them in the page cache."""
    found = 0
    for path in files:
        with path.open("rb") as file:
            found += cached_bytes(file.fileno(), 0, path.stat().st_size)
    return found


def keep_in_page_cache(files: list[Path], kept: int) -> None:
    """The last `kept` bytes of the files, and nothing of the rest."""
    for path in reversed(files):
        size = path.stat().st_size
        first = max(0, size - kept) // STEP_BYTES * STEP_BYTES
        kept = max(0, kept - size)
        buffer = bytearray(STEP_BYTES)
        with path.open("rb", buffering=0) as file:
            if first:  # 0 bytes would be all
                drop(file.fileno(), 0, first)
            for at in range(first, size, STEP_BYTES):
                part = min(STEP_BYTES, size - at)
                if cached_bytes(file.fileno(), at, part) < part:
                    os.preadv(file.fileno(), [buffer], at)


class Case:
    """A way to open a model. `files`: what it reads or maps; `arena`: bytes of memory that it fills."""

    def __init__(self, name: str, path: str, run: RunConfig, files: list[Path], arena: int):
        self.name, self.path, self.run, self.files, self.arena = name, path, run, files, arena
        self.size = sum(file.stat().st_size for file in files)

    def round(self) -> dict[str, float]:
        keep_in_page_cache(self.files, max(0, free_memory() - self.arena - BESIDE_WEIGHTS))
        disk_rate = disk(max(self.files, key=lambda file: file.stat().st_size))
        memory_rate = new_memory(min(MEMORY_SAMPLE, free_memory() // 2), self.run.threads or 1)
        sleep(SETTLE_SECONDS)
        cached = cached_in(self.files)
        figures = start_apart(self.path, self.run)
        from_disk, from_host = (self.size - cached) / disk_rate, self.arena / memory_rate
        return figures | {
            "cached_bytes": cached,
            "disk_bytes_per_second": disk_rate,
            "new_memory_bytes_per_second": memory_rate,
            "floor_seconds": from_disk + from_host,
            "overlapped_floor_seconds": max(from_disk, from_host),
            "share_of_floor": (from_disk + from_host) / figures["ready_seconds"],
            "share_of_overlapped_floor": max(from_disk, from_host) / figures["ready_seconds"],
            "bytes_per_second": self.size / figures["ready_seconds"],
            "beside_weights_bytes": figures["held_bytes"] - self.arena,
        }

    def measure(self, rounds: int) -> dict:
        """Medians, the rounds, and what is required."""
        series = []
        for _ in range(rounds):
            series.append(self.round())
            cells = (f"{head} {series[-1][key] / unit:{form}}" for key, (head, unit, form) in COLUMNS.items())
            print(f"{self.name:>8}  " + "  ".join(cells), file=sys.stderr, flush=True)
        medians = {key: median(figures[key] for figures in series) for key in series[0]}
        return {"case": self.name, "bytes": self.size, "bar_seconds": BARS[self.name], **medians, "rounds": series}


def cases(path: str, threads: int, cache: str | None) -> dict[str, Case]:
    with open_gguf(path) as file:
        files, arena = list(file.paths), arena_bytes(plan(file, ModelConfig.from_gguf(file)))
    run = RunConfig(context=CONTEXT, threads=threads)
    made = {
        "memory": Case("memory", path, replace(run, mmap=False), files, arena),
        "mmap": Case("mmap", path, replace(run, mmap=True), files, 0),
    }
    if cache is not None:
        cached = replace(run, weights_cache=cache)
        print("writing the weights cache, unless it is there", file=sys.stderr)
        start_apart(path, cached)
        newest = max(Path(cache).glob(f"{files[0].stem}-*.x16"), key=lambda found: found.stat().st_mtime_ns)
        made["cache"] = Case("cache", path, cached, [newest], 0)
    return made


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("file")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--cases", type=names, default=list(BARS), help=", ".join(BARS))
    arguments.add_argument("--weights-cache", metavar="DIR", help="where the cache lies, or is made")
    options = arguments.parse_args()
    found = cases(options.file, options.threads, options.weights_cache if "cache" in options.cases else None)
    results = [case.measure(options.rounds) for name, case in found.items() if name in options.cases]
    print(json.dumps({"model": Path(options.file).name, "threads": options.threads, "results": results, **setting()}))


if __name__ == "__main__":
    main()
