"""The tables of docs/performance.md, docs/planner.md and docs/serve.md, from the results of the benchmarks.

    python -m benchmarks.kernels > benchmarks/results/kernels.json
    python -m benchmarks.moe --experts 256 --contenders plain > benchmarks/results/moe.json
    python -m benchmarks.models lite.gguf --depths 0,4096 --prompts 512,4096 > benchmarks/results/lite.json
    python -m benchmarks.models slice.gguf --prompts 512 --all-logits > benchmarks/results/slice.json
    python -m benchmarks.load slice.gguf --weights-cache DIR > benchmarks/results/load.json
    python -m benchmarks.predictions --lite lite.gguf --slice slice.gguf
    python -m benchmarks.serve lite.gguf > benchmarks/results/serve.json
    python -m benchmarks.report             writes them between their marks: <!-- NAME --> and <!-- end -->

A result that is not there leaves its table as it is.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.setting import ROOT

PAGE, PLANNER, SERVER = (ROOT / "docs" / f"{name}.md" for name in ("performance", "planner", "serve"))
RESULTS = ROOT / "benchmarks" / "results"


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def setting_line(result: dict) -> str:
    machine, versions = result["machine"], result["versions"]
    return (
        f"{machine['cpu']}, {result['threads']} threads, numba {versions['numba']},"
        f" llama-cpp-python {versions['llama-cpp-python']}, commit {result['commit']}, {result['date']}"
    )


def kernels(result: dict) -> str:
    """A row for each format: from memory with one column, then the ratio to ggml for each number of columns."""
    cases = {(row["type"], row["place"], row["columns"]): row for row in result["results"]}
    types = list(dict.fromkeys(type for type, _, _ in cases))
    tiles = sorted({columns for _, place, columns in cases if place == "cache" and columns > 1})

    def line(type: str) -> list[str]:
        vector = cases.get((type, "memory", 1))
        cells = ["", "", ""]
        if vector:
            speed = f"{vector['bytes_per_second'] / 1e9:.1f}"
            cells = [speed, f"{vector['share_of_read']:.0%}", f"{vector['ratio_of_medians']:.2f}"]
        for columns in tiles:
            row = cases.get((type, "cache", columns))
            cells += [f"{row['flops_per_second'] / 1e9:.0f}", f"{row['ratio_of_medians']:.2f}"] if row else ["", ""]
        return [type, *cells]

    heads = ["format", "x 1, GB/s", "of read", "/ ggml"]
    heads += [head for columns in tiles for head in (f"x {columns}, GFLOP/s", "/ ggml")]
    return table(heads, map(line, types))


def moe(result: dict) -> str:
    def line(row: dict) -> list[str]:
        return [
            f"{row['layer']}, {row['experts']} experts, {row['tokens']} tokens",
            f"{row['bytes_per_second'] / 1e9:.1f}",
            f"{row['share_of_read']:.0%}",
            f"{row['flops_per_second'] / 1e9:.0f}",
            f"{row['share_of_tile']:.0%}",
            f"{row['ratio_of_medians']:.2f}",
        ]

    return table(("layer", "GB/s", "of read", "GFLOP/s", "of the tile's rate", "/ ggml"), map(line, result["results"]))


def models(result: dict) -> str:
    engines = list(result["results"][0]["tokens_per_second"])

    def line(row: dict) -> list[str]:
        share = f"{row['share_of_read']:.0%}" if "share_of_read" in row else ""
        ratio = f"{row['ratio_of_medians']:.2f}" if "ratio_of_medians" in row else ""
        return [row["case"], *(f"{row['tokens_per_second'][engine]:.1f}" for engine in engines), ratio, share]

    names = [engine if engine == "hetero" else f"llama.cpp, {engine}" for engine in engines]
    return table(("tok/s", *names, "ratio", "of the read bandwidth"), map(line, result["results"]))


def load(result: dict) -> str:
    starts = {"memory": "in memory, rearranged", "mmap": "--mmap", "cache": "--weights-cache, second start"}

    def line(row: dict) -> list[str]:
        return [
            starts[row["case"]],
            f"{row['cached_bytes'] / 1e9:.1f} of {row['bytes'] / 1e9:.1f}",
            f"{row['disk_bytes_per_second'] / 1e9:.2f}",
            f"{row['new_memory_bytes_per_second'] / 1e9:.2f}",
            f"{row['floor_seconds']:.1f}",
            f"{row['overlapped_floor_seconds']:.1f}",
            f"{row['ready_seconds']:.1f}",
            f"{row['first_token_seconds']:.1f}",
            f"{row['beside_weights_bytes'] / (1 << 20):.0f}",
        ]

    heads = ("start", "in the page cache, GB", "disk, GB/s", "new memory, GB/s", "floor, s", "overlapped, s")
    return table((*heads, "ready, s", "first token, s", "beside the weights, MiB"), map(line, result["results"]))


def predictions(result: dict) -> str:
    """A row for each model, of each figure the measured speed and predicted over measured."""
    rows = {(row["case"], row["figure"]): row for row in result["results"]}
    figures = list(dict.fromkeys(figure for _, figure in rows))

    def line(case: str) -> list[str]:
        cells = [case]
        for figure in figures:
            row = rows.get((case, figure))
            cells += [f"{row['measured']:.1f}", f"{row['ratio']:.2f}"] if row else ["", ""]
        return cells

    heads = [head for figure in figures for head in (f"{figure}, tok/s", "predicted /")]
    return table(("model", *heads), map(line, dict.fromkeys(case for case, _ in rows)))


def serve(result: dict) -> str:
    """What is promised beside what was measured; then a row for each number of clients."""
    gap, streams, turn = (
        next(r for r in result["results"] if r["case"] == case) for case in ("gap", "streams", "turn")
    )
    promises = [
        [
            f"longest time between two tokens while a prompt of {gap['prompt_tokens']:,.0f} tokens is read",
            f"{gap['longest_gap_seconds']:.2f} s",
            f"at most {gap['bound_seconds']:.2f} s",
        ],
        [
            f"that prompt's speed beside the other answer, of {gap['alone_tokens_per_second']:.0f} tok/s alone",
            f"{gap['share_of_alone']:.0%}",
            "at least 70 %",
        ],
        [
            f"{result['sequences']} answers together, of what bytes allow: {streams['allowed_times_one']:.2f} x one"
            f" ({streams['one_tokens_per_second']:.1f} tok/s)",
            f"{streams['share_of_allowed']:.0%} ({streams['together_tokens_per_second']:.1f} tok/s)",
            "at least 85 %",
        ],
        [
            f"first token of a second turn, of {turn['first_turn_seconds']:.1f} s for the first turn's"
            f" ({turn['prompt_tokens']:,.0f} tokens, {turn['cached_tokens']:,.0f} of them cached)",
            f"{turn['share_of_first']:.0%}",
            "at most 15 %",
        ],
        [
            f"the same with a longer question ({turn['long_prompt_tokens']:,.0f} tokens,"
            f" {turn['long_cached_tokens']:,.0f} of them cached)",
            f"{turn['long_share_of_first']:.0%}",
            "at most 15 %",
        ],
    ]
    rows = [
        [
            f"{row['clients']:.0f}",
            f"{row['first_token_seconds']:.1f}",
            f"{row['longest_first_token_seconds']:.1f}",
            f"{row['tokens_per_second_of_one']:.1f}",
            f"{row['tokens_per_second']:.1f}",
        ]
        for row in result["results"]
        if "clients" in row
    ]
    heads = ("clients", "first token, s", "the longest, s", "tok/s of one", "tok/s together")
    return f"{table(('', 'measured', 'promised'), promises)}\n\n{table(heads, rows)}"


TABLES: dict[str, Callable[[dict], str]] = {
    "kernels": kernels,
    "moe": moe,
    "lite": models,
    "slice": models,
    "load": load,
}
PREDICTIONS: dict[str, Callable[[dict], str]] = {"predictions": predictions}
SERVED: dict[str, Callable[[dict], str]] = {"serve": serve}


def filled(page: str, results: Path = RESULTS, tables: dict[str, Callable[[dict], str]] = TABLES) -> str:
    """The page with every table whose result is there."""
    for name, render in tables.items():
        path = results / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        text = f"<!-- {name} -->\n{render(result)}\n\n{setting_line(result)}\n<!-- end -->"
        pattern, verbatim = rf"<!-- {name} -->.*?<!-- end -->", text.replace("\\", r"\\")
        page, found = re.subn(pattern, verbatim, page, flags=re.DOTALL)
        if not found:
            raise SystemExit(f"the page has no mark <!-- {name} -->")
    return page


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text()))
    PLANNER.write_text(filled(PLANNER.read_text(), tables=PREDICTIONS))
    SERVER.write_text(filled(SERVER.read_text(), tables=SERVED))


if __name__ == "__main__":
    main()
