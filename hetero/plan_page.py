"""A plan as one HTML page: the memory map as bars, speeds as curves. Nothing is fetched, no script runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, log2

from hetero.plan_report import (
    UNREAD,
    bar_ends,
    counted,
    gflops,
    places,
    published_lines,
    reasons,
    shares,
    speed,
    where_lines,
)
from hetero.planning import Planned
from hetero.sizes import format_size
from placement import Predictor
from placement.cost import decode_bytes
from placement.machine import DISK
from placement.plan import DecodeSpeed, MemoryUse, PrefillSpeed

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 280, 56, 36, 12, 40  # of a chart, pixels
DIGIT, GAP = 7, 8  # pixels of a label, and between two
DEPTHS, SHORTEST = 32, 16  # points of the curve over context; tokens of the shortest prompt
KINDS = ("weights", "KV cache", "buffers", "free")

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #68707a; --line: #d5dae0; --back: #fff;
  --weights: #3566b8; --kv: #d1832f; --buffers: #8a63b5; --free: #e9edf1; --second: #68707a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ed; --soft: #98a2ad; --line: #39414a; --back: #15191e;
  --weights: #6f9ce8; --kv: #e5a55c; --buffers: #b594dd; --free: #262d35; --second: #98a2ad; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p, ul { margin: .3rem 0 } .soft { color: var(--soft) } .scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid var(--line) }
th, td:not(:last-child) { white-space: nowrap }
th { color: var(--soft); font-weight: 500 } .text { text-align: left }
svg { display: block; width: 100%; height: auto } svg text { fill: var(--soft); font-size: 12px }
.weights { fill: var(--weights) } .kv { fill: var(--kv) } .buffers { fill: var(--buffers) } .free { fill: var(--free) }
.grid { stroke: var(--line) } .curve { fill: none; stroke: var(--weights); stroke-width: 2.5 }
.curve.second { stroke: var(--second); stroke-dasharray: 6 4; stroke-width: 1.5 }
.dot { fill: var(--weights) } .key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em }
"""
COLOURS = dict(zip(KINDS, ("weights", "kv", "buffers", "free"), strict=True))


def page(planned: Planned) -> str:
    """HTML 5, in itself complete."""
    plan, settings = planned.plan, planned.plan.settings
    title = escape(f"{plan.model} on {plan.machine}")
    about = (
        f"context {planned.context:,} x {settings.sequences}, KV cache {settings.kv},"
        f" {counted(plan.threads, 'thread')}; {format_size(plan.model_bytes)} of weights"
    )
    how = "Predicted from measured rates." if planned.machine.measured else "Expectations: this was not measured."
    body = [
        f"<h1>{escape(plan.model)}</h1><p>{escape(plan.machine)}</p><p class='soft'>{escape(about)}. {how}</p>",
        *(f"<p class='soft'>{escape(note)}</p>" for note in planned.notes),
        "<h2>Memory</h2>",
        _legend(),
        *(_memory(use) for use in plan.memories if use.name != DISK),
        *_disk(planned),
        "<h2>Decode: tokens/s over the tokens of context</h2>",
        *_decode(planned),
        "<h2>Prefill: tokens/s over the length of the prompt</h2>",
        *_prefill(planned),
        *(f"<p class='soft'>{escape(line)}</p>" for line in published_lines(planned)),
        "<h2>Parts</h2>",
        _parts(planned),
        "<h2>What was chosen, and why</h2><ul>",
        *(f"<li>{escape(sentence)}</li>" for sentence in reasons(planned)),
        "</ul>",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{title}</title><style>{STYLE}</style>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def _legend() -> str:
    keys = (f'<span class="key" style="background: var(--{COLOURS[kind]})"></span>{kind}' for kind in KINDS)
    scale = "Each bar has a scale of its own: its whole length is what may be used of that memory."
    return f'<p>{"".join(keys)}</p><p class="soft">{scale}</p>'


def _memory(use: MemoryUse) -> str:
    """One bar, as long as the memory."""
    sizes = (use.weight_bytes, use.kv_bytes, use.buffer_bytes, use.free_bytes)
    text = f" {format_size(use.bytes)}: "
    text += ", ".join(f"{kind} {format_size(size)}" for kind, size in zip(KINDS, sizes, strict=True))
    parts, start = [], 0
    for kind, end in zip(KINDS, bar_ends(use), strict=True):
        parts.append((COLOURS[kind], kind, end - start))
        start = end
    return _bar(use.name, text, parts, use.bytes)


def _disk(planned: Planned) -> Iterator[str]:
    """One bar, as long as the weights: whole disks are much longer."""
    if planned.on_disk:
        size = sum(one.bytes for one in planned.plan.tensors if one.place == DISK and one.name in planned.on_disk)
        whole = planned.plan.model_bytes
        text = (
            f": {format_size(size)} of weights are read from it as they are used; the bar is all {format_size(whole)}"
        )
        yield _bar(DISK, text, [("weights", "read from the disk", size), ("free", "elsewhere", whole - size)], whole)


def _bar(name: str, text: str, parts: Iterable[tuple[str, str, int]], whole: int) -> str:
    """`parts`: style, label and bytes, of `whole`."""
    x, drawn = 0.0, []
    for style, label, size in parts:
        width = WIDTH * size / max(whole, 1)
        title = f"<title>{label}: {format_size(size)}</title>"
        drawn.append(f'<rect class="{style}" x="{x:.1f}" width="{width:.1f}" height="22">{title}</rect>')
        x += width
    bar = f'<svg viewBox="0 0 {WIDTH} 22" role="img" aria-label="{escape(name)}">{"".join(drawn)}</svg>'
    return f"<p><b>{escape(name)}</b>{escape(text)}</p>{bar}"


@dataclass(frozen=True)
class Curve:
    name: str
    points: Sequence[tuple[float, float]]
    style: str = "curve"


def _predictor(planned: Planned) -> Predictor:
    plan = planned.plan
    return Predictor(planned.model, planned.machine, plan.settings, plan.tensors, plan.mode == "resident")


def _decode(planned: Planned) -> Iterator[str]:
    predictor = _predictor(planned)
    last = planned.context - 1
    depths = sorted({last * i // DEPTHS for i in range(DEPTHS + 1)})
    steps = [predictor.decode(depth) for depth in depths]
    speeds = Curve("predicted", [(step.depth, step.tokens_per_second) for step in steps])
    ceiling = Curve(
        "ceiling (dashed)", [(step.depth, step.ceiling_tokens_per_second) for step in steps], "curve second"
    )
    yield _chart([speeds, ceiling], lambda depth: depth / max(last, 1), _even(last))
    rows = (_row(f"{step.depth:,}", step, speed(step.ceiling_tokens_per_second)) for step in planned.plan.decode)
    yield _table(("depth", "tok/s", "ceiling, tok/s", "bound by", "time"), rows, text=2)


def _prefill(planned: Planned) -> Iterator[str]:
    predictor = _predictor(planned)
    lengths = [min(SHORTEST, planned.context)]
    while lengths[-1] < planned.context:
        lengths.append(min(2 * lengths[-1], planned.context))
    points = [(length, predictor.prefill(length).tokens_per_second) for length in lengths]
    first, last = log2(lengths[0]), log2(lengths[-1])
    yield _chart([Curve("predicted", points)], lambda length: (log2(length) - first) / max(last - first, 1), lengths)
    rows = (_row(f"{step.prompt_tokens:,}", step) for step in planned.plan.prefill)
    yield _table(("tokens", "tok/s", "bound by", "time"), rows, text=2)


def _row(at: str, step: DecodeSpeed | PrefillSpeed, *more: str) -> list[str]:
    return [at, speed(step.tokens_per_second), *more, step.bound_by, shares(step.parts)]


def _parts(planned: Planned) -> str:
    rows = []
    for part, sizes in places(planned).items():
        where = "stays in the file" if part in UNREAD else ", ".join(where_lines(sizes))
        read = decode_bytes(planned.model, part)
        rows.append((part, format_size(sum(sizes.values())), format_size(read), gflops(planned.model, part), where))
    return _table(("part", "size", "read a token", "GFLOP a token", "where"), rows, text=1, first_is_text=True)


def _table(names: Sequence[str], rows: Iterable[Sequence[str]], text: int, first_is_text: bool = False) -> str:
    """The last `text` columns are words."""

    def cells(tag: str, row: Sequence[str]) -> str:
        words = {*range(len(names) - text, len(names))} | ({0} if first_is_text else set())
        return "".join(
            f"<{tag}{' class=text' if i in words else ''}>{escape(cell)}</{tag}>" for i, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells("th", names)}</tr>{body}</table></div>'


def _even(last: int) -> list[int]:
    """About eight round numbers from 0 on."""
    step = 1
    while last / step > 8:
        step *= 2
    return list(range(0, last + 1, step))


def _scale(value: float) -> list[float]:
    """From 0 to at least `value` in at most six steps of 1, 2 or 5 times a power of ten."""
    size = 1.0
    while size < value:
        size *= 10
    while size > value > 0:
        size /= 10
    step = next(part * size for part in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if value <= 6 * part * size)
    return [step * i for i in range(max(1, ceil(value / step)) + 1)]


def _with_room(labels: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Of (middle, text) from left to right those that do not touch another; the last one stays."""
    kept: list[tuple[float, str]] = []
    left = float(WIDTH)
    for x, text in reversed(labels):
        half = DIGIT * len(text) / 2
        if x + half <= left:
            kept.append((x, text))
            left = x - half - GAP
    return kept[::-1]


def _chart(curves: Sequence[Curve], across: Callable[[float], float], ticks: Sequence[int]) -> str:
    """`across`: 0 to 1 from the left to the right; `ticks`: of the horizontal axis, in its unit."""
    scale = _scale(max(y for curve in curves for _, y in curve.points))
    inner, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + inner * across(x), TOP + tall * (1 - y / scale[-1])

    parts = []
    for value in scale:
        y = TOP + tall * (1 - value / scale[-1])
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:,.4g}</text>')
    for x, text in _with_room([(at(tick, 0)[0], f"{tick:,}") for tick in ticks]):
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{text}</text>')
    for curve in curves:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in curve.points))
        parts.append(f'<polyline class="{curve.style}" points="{line}"/>')
        if curve.style == "curve":
            parts += [_dot(*at(*point), *point) for point in curve.points]
    names = ", ".join(curve.name for curve in curves)
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">tokens/s: {names}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _dot(x: float, y: float, tokens: float, found: float) -> str:
    label = f"<title>{tokens:,.0f}: {speed(found)} tok/s</title>"
    return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3">{label}</circle>'
