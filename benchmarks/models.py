"""Whole models beside llama.cpp, on the same file and threads: decode at several depths, prompts of several lengths.

    python -m benchmarks.models lite.gguf --depths 0,4096 --prompts 512,4096
    python -m benchmarks.models slice.gguf --prompts 512 --all-logits

Each engine runs in a process of its own. Where the memory holds all of them they take turns case by case; else, or with
--apart, they are loaded one after the other for a turn of all cases. llama.cpp runs with its weights as they are in the
file and rearranged, and the better variant of each case counts. Figures are medians over the rounds; "ratio" is ours
over theirs: of the medians, and the median of the rounds' ratios. --all-logits asks for the logits of every token of
a prompt: engines skip most of the last layer otherwise, which is much of a model of three layers.

The table goes to stderr, one JSON document comes last, on stdout.
"""

import argparse
import json
import sys
from collections import defaultdict
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.options import integers, names, parser
from benchmarks.setting import setting
from hetero.config import RunConfig
from hetero.contest import Apart
from hetero.free_memory import free_memory
from hetero.inspect import inspect_file

ENGINES = {"hetero": 1.1, "plain": 1.1, "rearranged": 1.7}  # memory they take, as a multiple of the file
Times = dict[str, dict[str, list[float]]]  # case -> engine -> tokens per second in each round


def start(engine: str, options: argparse.Namespace, context: int) -> Apart:
    if engine == "hetero":
        return Apart("hetero", options.file, RunConfig(context=context, threads=options.threads, kv=options.kv))
    return Apart("llama.cpp", options.file, context, options.kv, options.threads, engine == "rearranged")


def requests(options: argparse.Namespace, ids: list[int]) -> dict[str, tuple]:
    """What a contestant is asked in each case."""
    made: dict[str, tuple] = {f"decode at {n}": ("decode", ids[: n + 1], options.generate) for n in options.depths}
    method = "prefill_all" if options.all_logits else "prefill"
    return made | {f"prefill {n}": (method, ids[:n]) for n in options.prompts}


def measure(options: argparse.Namespace, context: int, ids: list[int], nbytes: int) -> tuple[Times, dict]:
    cases = requests(options, ids)
    times: Times = defaultdict(lambda: defaultdict(list))
    facts: dict[str, list[dict]] = defaultdict(list)

    def ask(case: str, engine: str, contestant: Apart) -> None:
        times[case][engine].append(contestant.ask(*cases[case]))
        if engine == "hetero":
            times["bandwidth"][case].append(contestant.ask("bandwidth"))
        print(f"{case:>16}  {engine:<12}{times[case][engine][-1]:9.2f} tok/s", file=sys.stderr, flush=True)

    needed = sum(ENGINES[engine] for engine in options.engines) * nbytes
    if needed < free_memory() and not options.apart:
        with ExitStack() as stack:
            all_of = {e: stack.enter_context(closing(start(e, options, context))) for e in options.engines}
            for case in cases:
                for _ in range(options.rounds):
                    for engine, contestant in all_of.items():
                        ask(case, engine, contestant)
            for engine, contestant in all_of.items():
                facts[engine].append(contestant.ask("facts"))
        return times, facts
    for _ in range(options.rounds):
        for engine in options.engines:
            with closing(start(engine, options, context)) as contestant:
                for case in cases:
                    ask(case, engine, contestant)
                facts[engine].append(contestant.ask("facts"))
    return times, facts


def summary(times: Times, options: argparse.Namespace, report: dict) -> list[dict]:
    rows = []
    for case in requests(options, []):
        speeds = {engine: median(series) for engine, series in times[case].items()}
        read = median(times["bandwidth"][case]) if "hetero" in speeds else None
        row: dict = {"case": case, "tokens_per_second": speeds, "rounds": times[case], "read_bytes_per_second": read}
        if read and case.startswith("decode"):
            depth = int(case.split()[-1])
            step = report["active_bytes_per_token"] + depth * report["kv_bytes_per_token"][options.kv]
            row["share_of_read"] = speeds["hetero"] * step / read
        others = {engine: speed for engine, speed in speeds.items() if engine != "hetero"}
        if others and "hetero" in speeds:
            best = max(others, key=others.__getitem__)
            pairs = zip(times[case]["hetero"], times[case][best], strict=True)
            row |= {
                "best_other": best,
                "ratio_of_medians": speeds["hetero"] / others[best],
                "median_of_ratios": median(mine / theirs for mine, theirs in pairs),
            }
        rows.append(row)
        print(json.dumps({key: value for key, value in row.items() if key != "rounds"}), file=sys.stderr)
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("file")
    arguments.add_argument("--depths", type=integers, default=[0])
    arguments.add_argument("--prompts", type=integers, default=[512])
    arguments.add_argument("--generate", type=int, default=32)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--kv", default="f16")
    arguments.add_argument("--engines", type=names, default=list(ENGINES), help=", ".join(ENGINES))
    arguments.add_argument("--all-logits", action="store_true", help="of prompts, in both engines")
    arguments.add_argument("--apart", action="store_true", help="one engine in memory at a time, also where all fit")
    options = arguments.parse_args()
    report = inspect_file(options.file)
    context = max(*options.prompts, *(depth + options.generate + 1 for depth in options.depths))
    ids = np.random.default_rng(0).integers(0, report["config"]["vocab_size"], context).tolist()
    times, facts = measure(options, context, ids, report["bytes"])
    result = {
        "model": Path(options.file).name,
        "file_bytes": report["bytes"],
        "weight_bytes_per_token": report["active_bytes_per_token"],
        "threads": options.threads,
        "kv": options.kv,
        "all_logits": options.all_logits,
        "results": summary(times, options, report),
        "facts": facts,
        **setting(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
