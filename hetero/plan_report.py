"""A plan in words and tables, for a terminal."""

from collections.abc import Iterator
from typing import Any

from hetero.planning import Planned
from hetero.sizes import format_size
from placement.cost import decode_bytes, part_flops
from placement.edited import gpu_experts
from placement.machine import DISK, GPU
from placement.model import PARTS, Model, Part
from placement.plan import MemoryUse, PartSeconds
from placement.published import published

BAR = 30  # characters
MARKS = "█▓▒░"  # weights, KV cache, buffers, free
UNREAD = ("nextn", "other")
DENSE: tuple[Part, ...] = ("mla", "shared expert", "dense ffn", "head")
LONGEST = 3  # parts whose share of the time is shown
# Of the serial ceiling, with DeepSeek-V3 and R1: https://github.com/ikawrakow/ik_llama.cpp,
# https://arxiv.org/abs/2606.10493, https://github.com/kvcache-ai/ktransformers
REACHED = (
    "Read expectations as such: of such a ceiling the best published systems reach 45 to 63 % in decode"
    " (ik_llama.cpp; arXiv 2606.10493: 50 to 55 %; KTransformers: 36 to 44 %)."
)


def describe(planned: Planned) -> str:
    """The text form of a plan."""
    plan, settings = planned.plan, planned.plan.settings
    threads = counted(plan.threads, "thread")
    lines = [
        f"{plan.model}, {format_size(plan.model_bytes)}",
        f"on {plan.machine}",
        f"context {planned.context:,} x {settings.sequences}, KV cache {settings.kv}, {threads}",
        *planned.notes,
        "",
        *_memories(planned),
        "",
        *_parts(planned),
        "",
        *_speeds(planned),
        "",
        *(f"- {sentence}" for sentence in reasons(planned)),
    ]
    return "\n".join(lines)


def _memories(planned: Planned) -> Iterator[str]:
    yield f"{'memory':<7}{'usable':>12}{'weights':>12}{'KV cache':>12}{'buffers':>12}{'free':>12}"
    for use in planned.plan.memories:
        if use.name == DISK:
            if planned.on_disk:
                yield f"{use.name:<7}{'':>12}{format_size(use.weight_bytes):>12}  read as they are used"
            continue
        sizes = (use.bytes, use.weight_bytes, use.kv_bytes, use.buffer_bytes, use.free_bytes)
        yield f"{use.name:<7}" + "".join(f"{format_size(size):>12}" for size in sizes) + f"  {_bar(use)}"


def _bar(use: MemoryUse) -> str:
    bar, whole = "", max(use.bytes, 1)
    for mark, end in zip(MARKS, bar_ends(use), strict=True):
        bar += mark * (round(BAR * end / whole) - len(bar))
    return bar


def bar_ends(use: MemoryUse) -> list[int]:
    """Byte at which each of weights, KV cache, buffers and free memory ends."""
    ends = [use.weight_bytes]
    for size in (use.kv_bytes, use.buffer_bytes, use.free_bytes):
        ends.append(ends[-1] + size)
    return ends


def places(planned: Planned) -> dict[Part, dict[str, int]]:
    """Part of the model -> memory -> bytes; parts that are not there left out."""
    found = dict[Part, dict[str, int]]()
    for part in PARTS:
        sizes: dict[str, int] = {}
        for tensor in planned.model.by_part[part]:
            for one in planned.plan.by_tensor[tensor.name]:
                sizes[one.place] = sizes.get(one.place, 0) + one.bytes
        if sizes:
            found[part] = sizes
    return found


def _parts(planned: Planned) -> Iterator[str]:
    yield f"{'part':<16}{'size':>12}{'read a token':>14}{'GFLOP a token':>15}  where"
    for part, sizes in places(planned).items():
        where = "stays in the file" if part in UNREAD else ", ".join(where_lines(sizes))
        size, read = sum(sizes.values()), decode_bytes(planned.model, part)
        yield f"{part:<16}{format_size(size):>12}{format_size(read):>14}{gflops(planned.model, part):>15}  {where}"


def gflops(model: Model, part: Part) -> str:
    """Of the products with one token."""
    return f"{part_flops(model, part, 1) / 1e9:.3g}"


def where_lines(sizes: dict[str, int]) -> list[str]:
    if len(sizes) == 1:
        return list(sizes)
    return [f"{place} {format_size(size)}" for place, size in sizes.items()]


def document(planned: Planned) -> dict[str, Any]:
    """The JSON form of a plan, with what people should know of it; `placement.replan` takes it back."""
    there = published(planned.model.name, planned.machine)
    remarks = {"notes": list(planned.notes), "published": [one.to_json() for one in there]}
    return planned.plan.to_json() | remarks


def published_lines(planned: Planned) -> list[str]:
    """What others reached, on much the same machine where that is known."""
    there = [str(one) for one in published(planned.model.name, planned.machine)]
    return there if planned.machine.measured else [REACHED, *there]


def _speeds(planned: Planned) -> Iterator[str]:
    word = "predicted" if planned.machine.measured else "expected, not measured"
    yield f"decode ({word})"
    yield f"  {'depth':>8}{'tok/s':>10}{'ceiling':>10}  {'bound by':<16}  time"
    for step in planned.plan.decode:
        speeds = f"{speed(step.tokens_per_second):>10}{speed(step.ceiling_tokens_per_second):>10}"
        yield f"  {step.depth:>8,}{speeds}  {step.bound_by:<16}  {shares(step.parts)}"
    yield f"prefill ({word})"
    yield f"  {'tokens':>8}{'tok/s':>10}{'':>10}  {'bound by':<16}  time"
    for prompt in planned.plan.prefill:
        speeds = f"{speed(prompt.tokens_per_second):>10}{'':>10}"
        yield f"  {prompt.prompt_tokens:>8,}{speeds}  {prompt.bound_by:<16}  {shares(prompt.parts)}"
    yield "The ceiling is what the memories' bandwidths allow: bytes of a token over bandwidth, added up."
    yield from published_lines(planned)


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def speed(tokens_per_second: float) -> str:
    return f"{tokens_per_second:,.{1 if tokens_per_second >= 10 else 2}f}"


def shares(parts: tuple[PartSeconds, ...]) -> str:
    """Of the time, the largest."""
    whole = sum(part.seconds for part in parts)
    return ", ".join(f"{part.part} on {part.place} {part.seconds / whole:.0%}" for part in parts[:LONGEST])


def reasons(planned: Planned) -> Iterator[str]:
    """What was chosen, and why."""
    yield _why_mode(planned)
    if planned.machine.vram is not None:
        yield _why_gpu(planned)
    kv = sum(use.kv_bytes for use in planned.plan.memories)
    yield f"{format_size(kv)} are kept for the cache, so the promised context can always be filled"
    if planned.on_disk:
        left = next(use.weight_bytes for use in planned.plan.memories if use.name == DISK)
        yield f"{format_size(left)} of weights come from the disk whenever a token needs them"


def _why_mode(planned: Planned) -> str:
    need, room = format_size(planned.needed_bytes), format_size(planned.dram_bytes)
    if planned.plan.mode == "resident":
        return f"weights are read into memory: with cache and working memory {need} of {room} of DRAM"
    if planned.on_disk:
        return f"weights stay in the file (mmap): with cache and working memory {need} do not fit in {room} of DRAM"
    if planned.plan.settings.mmap:
        return f"weights stay in the file (mmap), as asked; all {need} of them, cache and working memory fit in {room}"
    return (
        f"weights stay in the file (mmap): with cache and working memory {need} fit in {room} of DRAM, but one node has"
        " no room for the share that its threads read"
    )


def _why_gpu(planned: Planned) -> str:
    model, there = planned.model, planned.plan.tensors
    mine = [one for one in there if one.place == GPU]
    if not mine:
        return "the GPU is left alone: asked for, too small, or decoding would be slower with it"
    experts = gpu_experts(model, planned.plan.by_tensor)
    total = model.dimensions.experts * len(model.routed_by_layer)
    dense = {tensor.name for part in DENSE for tensor in model.by_part[part]}
    if dense <= {one.name for one in mine}:
        return f"the GPU holds every dense part, and {experts:,} of {total:,} routed experts in the room that is left"
    return "the GPU is full before every dense part is there: attention first, then shared experts, dense FFN, head"
