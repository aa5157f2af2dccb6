"""The CPU as the planner sees it: rates of all kernels, measured, of which those that are known already are kept."""

from collections.abc import Iterable

from cpu_kernels import Pool
from hetero.free_memory import free_memory
from hetero.kernel_rates import LEAST_ROTATED, MOST_COLUMNS, ROTATED_BYTES, KernelRates, Verb
from hetero.stopwatch import Stopwatch
from hetero.verb_rates import KV, AttentionRates, verb_rates
from placement.machine import CPU, Processor

Wanted = tuple[Verb, str]  # and a type of weights
ROUTER = "F32"  # and no other matrices: these are products only


def rates_for(types: Iterable[str]) -> set[Wanted]:
    """All that weights of these types can be needed for."""
    verbs: tuple[Verb, ...] = ("linear", "mapped", "heads", "experts")
    return {(verb, type) for type in {*types, ROUTER} for verb in (verbs[:2] if type == ROUTER else verbs)}


def measure_cpu(
    pool: Pool,
    stopwatch: Stopwatch,
    description: str,
    wanted: Iterable[Wanted],
    kv: Iterable[KV],
    known: Processor | None = None,
    most: int = MOST_COLUMNS,
) -> Processor:
    """`known`: measured before, with other types. `most` columns of products."""
    linear = {(rate.verb, rate.type): rate for rate in known.linear} if known else {}
    attention = {rate.kv: rate for rate in known.attention} if known else {}
    missing = sorted({(type, verb) for verb, type in wanted if (verb, type) not in linear})
    missing_kv = [kv for kv in dict.fromkeys(kv) if kv not in attention]
    verbs = known.verbs if known else verb_rates(pool, stopwatch)
    if missing_kv:
        rates = AttentionRates(pool, stopwatch)
        attention |= {kv: rates.rate(kv) for kv in missing_kv}
        del rates
    if missing:
        room = max(LEAST_ROTATED, min(ROTATED_BYTES, free_memory() // 2))  # a model may have taken the rest
        kernels = KernelRates(pool, stopwatch, most, room)
        linear |= {(verb, type): kernels.rate(verb, type) for type, verb in missing}
    return Processor(CPU, description, pool.threads, tuple(linear.values()), tuple(attention.values()), verbs)
