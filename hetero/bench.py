"""`hetero bench`: the ceiling that memory sets, the speed measured under it, and llama.cpp beside it if asked for."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any, Literal

import numpy as np

from hetero import __version__, demo
from hetero.contest import Apart, Here
from hetero.errors import RequestError, UnsupportedError
from hetero.expert_counts import refuse_unwritable, write_expert_counts
from hetero.extrapolate import extrapolated
from hetero.free_memory import free_memory
from hetero.inspect import inspect_file
from hetero.parts import PARTS
from hetero.peer import llama_cpp
from hetero.probe import machine, versions
from hetero.progress import StepBar
from hetero.run_config import RunConfig
from hetero.sizes import format_size
from hetero.slice_contest import SyntheticHere
from hetero.synthetic import Slice, make_slice, slice_report
from hetero.terminal import Screen

LLAMA_CPP = "llama.cpp"
PHASES = ("decode", "prefill")
VARIANTS = {"as in the file": False, "rearranged": True}  # of llama.cpp's weights
# Memory that an engine takes, as a multiple of the file
FOOTPRINT = 1.1


@dataclass(frozen=True)
class Bench:
    """What to measure: tokens of the prompt, tokens generated, after how many of context, how many times."""

    model: str
    prompt: int = 512
    generate: int = 128
    depth: int = 0
    repeat: int = 3
    compare: Literal["llama.cpp"] | None = None
    synthetic: str | None = None  # a preset that is measured instead of `model`
    layers: int | None = None  # of it, with experts
    expert_counts: str | None = None  # a file to write them to

    @property
    def context(self) -> int:
        return max(self.prompt, self.depth + self.generate + 1)


@dataclass
class Rounds:
    """What one contestant did, a value for each round, and what it says of itself afterwards."""

    decode: list[float] = field(default_factory=list)  # tokens per second
    prefill: list[float] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)  # bytes per second
    parts: list[dict[str, float]] = field(default_factory=list)  # seconds
    facts: dict[str, Any] = field(default_factory=dict)
    experts: dict[str, Any] = field(default_factory=dict)  # a document of hetero.expert_counts, where it is asked for

    def speeds(self) -> dict[str, float]:
        return {
            "prefill_tokens_per_second": median(self.prefill),
            "prefill_tokens_per_second_best": max(self.prefill),
            "decode_tokens_per_second": median(self.decode),
            "decode_tokens_per_second_best": max(self.decode),
        }


Start = Callable[[], Here | Apart]


def run_bench(what: Bench, run: RunConfig, screen: Screen) -> dict[str, Any]:
    """The document that `hetero bench --json` prints."""
    report, run, made = _checked(what, run)
    starts = _contestants(what, run, made)
    left_out = _without_room(starts, report["bytes"])
    ids = np.random.default_rng(0).integers(0, report["config"]["vocab_size"], what.context).tolist()
    with StepBar(screen, "bench") as bar:
        rounds = _measure(what, starts, report["bytes"], ids, bar)
    ours = rounds.pop("hetero")
    if what.expert_counts is not None:
        write_expert_counts(what.expert_counts, ours.experts)
    result = _document(what, run, report, ours)
    if made is not None:
        result = extrapolated(result, made, ours.decode, ours.facts)
    if what.compare:
        result["compare"] = _comparison(ours, rounds, left_out)
    return result


def _checked(what: Bench, run: RunConfig) -> tuple[dict[str, Any], RunConfig, Slice | None]:
    """The file's report, and the settings with a context that holds the run; refuses before weights are read.

    Without a file: the report of the slice of a preset, and the slice.
    """
    made = None
    if what.synthetic is not None:
        for other, reason in (
            (what.compare and f"--compare {what.compare}", "a synthetic model has no file"),
            (what.model != str(demo.path()) and what.model, "a synthetic model has no file"),
            (what.expert_counts and "--expert-counts", "random weights choose experts at random"),
        ):
            if other:
                raise RequestError(f"{other} with --synthetic", reason, "leave out one of them")
        made = make_slice(what.synthetic, what.layers, run, run.context or what.context)
        report = slice_report(made, whole=False)
    elif what.layers is not None:
        raise RequestError(f"--layers {what.layers}", "all layers of a file are measured", "give --synthetic PRESET")
    else:
        if what.compare:
            llama_cpp()
        report = inspect_file(what.model)
        if report["refused"]:
            found = f"{what.model}: {report['refused']}"
            raise UnsupportedError(found, remedy="hetero inspect shows what is in the file")
    longest, need = report["config"]["context_length"], what.context
    asked = f"--prompt {what.prompt}, --depth {what.depth} and --generate {what.generate} need {need} tokens"
    if need > longest:
        raise RequestError(asked, f"{report['config']['name']} was made for at most {longest}", "ask for fewer")
    if run.context is not None and need > run.context:
        raise RequestError(asked, f"--context {run.context} holds fewer", "raise it, or leave it out")
    refuse_unwritable(what.expert_counts)
    return report, replace(run, context=run.context or need), made


def _contestants(what: Bench, run: RunConfig, made: Slice | None) -> dict[str, Start]:
    """What starts each. Alone, this engine runs in this process; beside llama.cpp each has a process of its own."""
    if made is not None:
        return {"hetero": lambda: SyntheticHere(made, run)}
    if not what.compare:
        return {"hetero": lambda: Here("hetero", what.model, run)}
    from cpu_kernels.topology import default_threads

    run = replace(run, threads=run.threads or default_threads())
    settings = (what.model, run.context, run.kv, run.threads)
    starts: dict[str, Start] = {"hetero": lambda: Apart("hetero", what.model, run)}
    for name, rearranged in VARIANTS.items():
        starts[name] = partial(Apart, LLAMA_CPP, *settings, rearranged)
    return starts


def _without_room(starts: dict[str, Start], file_bytes: int) -> dict[str, str]:
    """Takes out variants of llama.cpp that the free memory would not hold; says why."""
    free, left_out = free_memory(), {}
    for name in VARIANTS:
        if name in starts and FOOTPRINT * file_bytes > free:
            needed = format_size(int(FOOTPRINT * file_bytes))
            left_out[name] = f"needs about {needed}, {format_size(free)} are free"
            del starts[name]
    return left_out


class Turns:
    """Asks contestants in turn and notes what they say."""

    def __init__(self, what: Bench, names: Iterable[str], ids: list[int], bar: Callable[[int, int, str], None]):
        self._what, self._ids, self._bar = what, ids, bar
        self.rounds = {name: Rounds() for name in names}
        self._done, self._total = 0, len(PHASES) * what.repeat * len(self.rounds)

    def take(self, phase: str, name: str, contestant: Here | Apart) -> None:
        self._bar(self._done, self._total, f"{name}: {phase}")
        self._done += 1
        rounds, context = self.rounds[name], self._ids[: self._what.depth + 1]
        if phase == "decode":
            rounds.decode.append(contestant.ask("decode", context, self._what.generate))
        else:
            rounds.prefill.append(contestant.ask("prefill", self._ids[: self._what.prompt]))
        if name == "hetero":
            rounds.bandwidth.append(contestant.ask("bandwidth"))
            if phase == "decode":  # here: the context is in the cache
                rounds.parts.append(contestant.ask("parts", context))

    def finish(self, name: str, contestant: Here | Apart) -> None:
        what, rounds = self._what, self.rounds[name]
        rounds.facts = contestant.ask("facts")
        if name != "hetero":
            return
        rounds.facts["predicted"] = contestant.ask("predict", what.depth + what.generate // 2, what.prompt)
        if what.expert_counts is not None and not rounds.experts:
            context, prompt = self._ids[: what.depth + 1], self._ids[: what.prompt]
            rounds.experts = contestant.ask("expert_counts", context, what.generate, prompt)


def _measure(
    what: Bench, starts: dict[str, Start], file_bytes: int, ids: list[int], bar: Callable[[int, int, str], None]
) -> dict[str, Rounds]:
    """All contestants at once where the memory holds them, else one at a time, loaded again for each turn."""
    turns = Turns(what, starts, ids, bar)
    needed = FOOTPRINT * len(starts) * file_bytes
    if len(starts) == 1 or needed < free_memory():
        with _all_of(starts) as contestants:
            for phase in PHASES:
                for _ in range(what.repeat):
                    for name, contestant in contestants.items():
                        turns.take(phase, name, contestant)
            for name, contestant in contestants.items():
                turns.finish(name, contestant)
        return turns.rounds
    for _ in range(what.repeat):
        for name, start in starts.items():
            with closing(start()) as contestant:
                for phase in PHASES:
                    turns.take(phase, name, contestant)
                turns.finish(name, contestant)
    return turns.rounds


@contextmanager
def _all_of(starts: dict[str, Start]) -> Iterator[dict[str, Here | Apart]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(closing(start())) for name, start in starts.items()}


def _document(what: Bench, run: RunConfig, report: dict[str, Any], ours: Rounds) -> dict[str, Any]:
    weights = report["active_bytes_per_token"]
    cache = what.depth * report["kv_bytes_per_token"][run.kv]
    bandwidth = median(ours.bandwidth)
    return {
        "model": what.synthetic or what.model,
        "machine": machine(),
        "threads": ours.facts["threads"],
        "kv": run.kv,
        "prompt_tokens": what.prompt,
        "generated_tokens": what.generate,
        "depth": what.depth,
        "repeat": what.repeat,
        **ours.speeds(),
        "decode_ceiling_tokens_per_second": ours.facts["predicted"].get("ceiling") or bandwidth / (weights + cache),
        "read_bandwidth_bytes_per_second": bandwidth,
        "weight_bytes_per_token": weights,
        "kv_bytes_at_depth": cache,
        "predicted_prefill_tokens_per_second": ours.facts["predicted"]["prefill"],
        "predicted_decode_tokens_per_second": ours.facts["predicted"]["decode"],
        "load_seconds": ours.facts["load_seconds"],
        "peak_resident_bytes": ours.facts["peak_resident_bytes"],
        "parts": {part: median(row[part] for row in ours.parts) for part in PARTS},
        "approximations": [],
        "extrapolated_from_layers": None,
        "versions": {"hetero": __version__} | versions("numpy", "numba", "llvmlite", "llama-cpp-python"),
    }


def _comparison(ours: Rounds, theirs: dict[str, Rounds], left_out: dict[str, str]) -> dict[str, Any]:
    """Their speeds, and ours over the better of their variants, of the medians."""
    variants = {name: rounds.speeds() | rounds.facts for name, rounds in theirs.items()}
    best = {
        phase: max(median(getattr(rounds, phase)) for rounds in theirs.values()) if theirs else None
        for phase in ("prefill", "decode")
    }
    ratios = {
        f"{phase}_ratio": None if speed is None else median(getattr(ours, phase)) / speed
        for phase, speed in best.items()
    }
    return {"engine": LLAMA_CPP, "variants": variants, "left_out": left_out, **ratios}
