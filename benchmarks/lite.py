"""hetero beside llama.cpp on one file and the same threads: prefill, decode, load time, resident memory.

    python -m tests.model_files lite lite.gguf      10.4 GB, once
    python -m benchmarks.lite lite.gguf             writes benchmarks/results/lite.json

Every run is a fresh process, and the engines take turns, because a shared machine drifts. A prompt's speed is its
tokens over the time to the first new token; decoding is timed from there on. llama.cpp runs with its fast settings (f16
cache, flash attention, the prompt as one batch). Its repacking, on by default, rewrites the weights in memory at load:
--repack adds it as a third contestant.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil

from benchmarks.setting import ROOT, setting

PROMPTS = (64, 512)  # tokens
GENERATED = 33  # the first ends the prompt's time, 32 are timed
CONTEXT = 1024

Generate = Callable[[list[int], int], Iterator[int]]  # prompt, number of new tokens -> new tokens, greedy


def start_hetero(path: Path, threads: int) -> Generate:
    from hetero import RunConfig, Sampling, load

    engine, _ = load(path, RunConfig(context=CONTEXT, threads=threads))

    def generate(ids: list[int], count: int) -> Iterator[int]:
        engine.forget()
        yield from engine.generate(ids, Sampling(temperature=0.0, max_tokens=count))

    return generate


def start_llama_cpp(path: Path, threads: int, repack: bool = False) -> Generate:
    from tests.llama_engine import LlamaCpp

    model = LlamaCpp(path, "f16", context=CONTEXT, threads=threads, flash=True, repack=repack)

    def generate(ids: list[int], count: int) -> Iterator[int]:
        model.forget()
        for _ in range(count):
            ids = [int(model.eval(ids, all_logits=False).argmax())]
            yield ids[0]

    return generate


def start_llama_cpp_repacked(path: Path, threads: int) -> Generate:
    return start_llama_cpp(path, threads, repack=True)


ENGINES = {
    "hetero": start_hetero,
    "llama.cpp": start_llama_cpp,
    "llama.cpp repacked": start_llama_cpp_repacked,
}


def measure(engine: str, path: Path, threads: int) -> dict[str, float]:
    """One run in this process. Flat: every figure is its own key."""
    started = perf_counter()
    generate = ENGINES[engine](path, threads)
    figures = {"load_seconds": perf_counter() - started}
    list(generate([0, 300], 2))  # kernels from their cache, buffers, first touch of the weights
    figures["load_and_first_token_seconds"] = perf_counter() - started
    rng = np.random.default_rng(0)
    for tokens in PROMPTS:
        stream = generate([0, *rng.integers(5, 500, size=tokens - 1).tolist()], GENERATED)
        started = perf_counter()
        next(stream)
        figures[f"prefill_{tokens}_tokens_per_second"] = tokens / (perf_counter() - started)
        started = perf_counter()
        generated = sum(1 for _ in stream)
        figures[f"decode_at_{tokens}_tokens_per_second"] = generated / (perf_counter() - started)
    return figures | memory()


def memory() -> dict[str, float]:
    """Bytes of this process. The file's mapped pages count as resident once they were touched."""
    with open("/proc/self/status") as status:
        kib = {key: value.split()[0] for key, _, value in (line.partition(":") for line in status) if value.strip()}
    return {"peak_resident_bytes": 1024 * int(kib["VmHWM"]), "anonymous_bytes": 1024 * int(kib["RssAnon"])}


def run_in_a_process(engine: str, path: Path, threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.lite", str(path), "--threads", str(threads), "--only", engine]
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    figures = json.loads(answer.splitlines()[-1])
    print(f"{engine:20s}", *(f"{k} {v:.4g}" for k, v in figures.items()), sep="  ", file=sys.stderr)
    return figures


def summary(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        key: {
            "median": round(statistics.median(run[key] for run in runs), 3),
            "least": round(min(run[key] for run in runs), 3),
            "most": round(max(run[key] for run in runs), 3),
        }
        for key in runs[0]
    }


def compare(path: Path, threads: int, rounds: int, engines: list[str]) -> dict[str, object]:
    runs: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
    for _ in range(rounds):
        for engine in engines:
            runs[engine].append(run_in_a_process(engine, path, threads))
    results = {engine: summary(figures) for engine, figures in runs.items()}
    ours, theirs = results["hetero"], results["llama.cpp"]
    return {
        "model": path.name,
        "file_bytes": path.stat().st_size,
        "threads": threads,
        "rounds": rounds,
        "results": results,
        "hetero_over_llama_cpp": {key: round(ours[key]["median"] / theirs[key]["median"], 3) for key in ours},
        "resident_bytes_over_file": ours["peak_resident_bytes"]["most"] - path.stat().st_size,
        **setting(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repack", action="store_true", help="also llama.cpp with its repacked weights")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "lite.json")
    parser.add_argument("--only", choices=ENGINES, help="one run of one engine; its figures go to stdout")
    a = parser.parse_args()
    path = a.file.resolve()
    if a.only:
        print(json.dumps(measure(a.only, path, a.threads)))
        return
    engines = ["hetero", "llama.cpp", *(["llama.cpp repacked"] if a.repack else [])]
    a.out.write_text(json.dumps(compare(path, a.threads, a.rounds, engines), indent=2) + "\n")


if __name__ == "__main__":
    main()
