"""A plan as one HTML page: the memory map as bars, speeds as curves. Nothing is fetched, no script runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import log2

from hetero.plan_report import UNREAD, bar_ends, places, published_lines, reasons, shares, speed, where_lines
from hetero.planning import Planned
from hetero.sizes import format_size
from placement import Predictor
from placement.cost import decode_bytes
from placement.machine import DISK
from placement.plan import DecodeSpeed, MemoryUse, PrefillSpeed

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 280, 56, 16, 12, 40  # of a chart, pixels
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
        f"context {planned.context:,} x {settings.sequences}, KV cache {settings.kv}, {plan.threads} threads;"
        f" {format_size(plan.model_bytes)} of weights"
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
    return f"<p>{''.join(keys)}</p>"


def _memory(use: MemoryUse) -> str:
    """One bar, as long as the memory."""
    whole, start, parts = max(use.bytes, 1), 0, []
    for kind, end in zip(KINDS, bar_ends(use), strict=True):
        x, width = WIDTH * start / whole, WIDTH * (end - start) / whole
        label = f"<title>{kind}: {format_size(end - start)}</title>"
        parts.append(f'<rect class="{COLOURS[kind]}" x="{x:.1f}" width="{width:.1f}" height="22">{label}</rect>')
        start = end
    sizes = zip(KINDS, (use.weight_bytes, use.kv_bytes, use.buffer_bytes, use.free_bytes), strict=True)
    text = f"<b>{escape(use.name)}</b> {format_size(use.bytes)}: "
    text += ", ".join(f"{kind} {format_size(size)}" for kind, size in sizes)
    return (
        f'<p>{text}</p><svg viewBox="0 0 {WIDTH} 22" role="img" aria-label="{escape(use.name)}">{"".join(parts)}</svg>'
    )


def _disk(planned: Planned) -> Iterator[str]:
    if planned.on_disk:
        size = next(use.weight_bytes for use in planned.plan.memories if use.name == DISK)
        yield f"<p><b>disk</b>: {format_size(size)} of weights are read from it as they are used</p>"


@dataclass(frozen=True)
class Curve:
    name: str
    points: Sequence[tuple[float, float]]
    style: str = "curve"


def _decode(planned: Planned) -> Iterator[str]:
    predictor = Predictor(planned.model, planned.machine, planned.plan.settings, planned.plan.tensors)
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
    predictor = Predictor(planned.model, planned.machine, planned.plan.settings, planned.plan.tensors)
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
        rows.append((part, format_size(sum(sizes.values())), format_size(read), where))
    return _table(("part", "size", "read a token", "where"), rows, text=1, first_is_text=True)


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


def _top(value: float) -> float:
    """A round number, not less than `value`."""
    size = 1.0
    while size < value:
        size *= 10
    while size > 10 * value and value > 0:
        size /= 10
    return next(size * part for part in (0.1, 0.2, 0.25, 0.5, 1.0) if size * part >= value)


def _chart(curves: Sequence[Curve], across: Callable[[float], float], ticks: Sequence[int]) -> str:
    """`across`: 0 to 1 from the left to the right; `ticks`: of the horizontal axis, in its unit."""
    top = _top(max(y for curve in curves for _, y in curve.points))
    inner, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + inner * across(x), TOP + tall * (1 - y / top)

    parts = []
    for i in range(5):
        y = TOP + tall * i / 4
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{top * (4 - i) / 4:,.4g}</text>')
    for tick in ticks:
        x, y = at(tick, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{tick:,}</text>')
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
