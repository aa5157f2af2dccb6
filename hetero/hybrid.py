"""The forward pass on a GPU and a CPU: the first layers' attention is the GPU's, and with it the residual stream.

A layer's routed experts, whole networks, or the layers behind and the head may be the CPU's: what it computes in the
middle of the GPU's pass are meetings (hetero.offload). Between `submit` and `collect` of one the GPU computes what it
has of the same layer, or the other half of the prompt.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cpu_kernels.attention import check_context
from hetero.attention import Step
from hetero.cache import PAGE
from hetero.config import ModelConfig
from hetero.errors import ResourceError
from hetero.gpu_side import GpuSide, memory_errors
from hetero.graph import SIZES, Capture, DecodeStep
from hetero.model import Batch, Block, Ends, Model, run_of
from hetero.offload import Doorbells
from hetero.offloaded_networks import OffloadedFFN, SplitMoE
from hetero.pace import Pace, Phases, finished
from hetero.recorded import MOST_TOKENS
from hetero.rehearsal import batch_of, rehearse_gpu
from hetero.side import Array, CpuSide

HALVES_FROM = 256  # tokens of a pass from which it is computed in two halves
HEAD_ROWS = 128  # tokens whose logits are on the GPU at a time: of 1,024 they would be 529 MB of DeepSeek-V3
MET = 16  # tokens of the passes that are rehearsed with the CPU: more than there are flags for
Stages = Generator[bool, None, Any]  # of a pass: whether a layer is complete; then no meeting is outstanding


def halves(step: Step) -> list[tuple[slice, Step]]:
    """A pass over many tokens of one sequence as two, one after the other in it; any other as it is."""
    tokens = len(step.positions)
    if tokens < HALVES_FROM or len(step.runs) != 1 or len(step.few):
        return [(slice(0, tokens), step)]
    cut = tokens // 2
    return [(at, _part(step, at)) for at in (slice(0, cut), slice(cut, tokens))]


def _part(step: Step, at: slice) -> Step:
    """These tokens of a step that is one run."""
    per_token = {name: getattr(step, name)[at] for name in ("positions", "sequence", "slots", "cos", "sin")}
    pages = int(per_token["positions"][-1]) // PAGE + 1
    run = step.runs[0]._replace(tokens=np.arange(at.stop - at.start), pages=pages)
    return replace(step, **per_token, runs=(run,))


def alternate(
    passes: Sequence[Stages], pace: Pace, tokens: int = 1, settle: Callable[[], None] = lambda: None
) -> Phases:
    """What generators return, advanced in turn, each a stage ahead of the next.

    Pauses behind a layer of `tokens` tokens where the next would make a piece too long; `settle` waits until all that
    was launched is computed, at the end too: the next step is not to wait for it.
    """
    results: list[Any] = [None] * len(passes)
    waiting = list(range(len(passes)))
    ahead, started = [waiting[:i] for i in range(1, len(passes))], pace.clock()
    while waiting:
        for i in ahead.pop(0) if ahead else tuple(waiting):
            complete = False
            try:
                complete = next(passes[i])
            except StopIteration as end:
                results[i] = end.value
                waiting.remove(i)
            if complete and not pace.whole:
                settle()
                pace.learn("layer", tokens, pace.clock() - started)
                if not pace.fitting("layer", np.array([tokens])):
                    yield
                    pace.begin()
                started = pace.clock()
    if not pace.whole:
        settle()
    return results


class LastPart:
    """What the CPU computes behind the GPU's layers, the blocks there and the head, in a pass that is one piece."""

    def __init__(self, model: "HybridModel"):
        self.model = model
        self.rest: tuple[Step, list[Any], np.ndarray | None] | None = None  # of the pass: step, cache, logits_at
        self.logits: np.ndarray | None = None
        self.meeting = model.doorbells.meeting(self.compute, model.config.hidden_size, rows=0)

    def compute(self, x: np.ndarray, ids: Any, weights: Any, out: Any) -> None:
        """Logits of every token of x where the GPU has left out rows already."""
        assert self.rest is not None, "a pass says what its last part is about"
        self.logits = self.model.onward(self.model.on_gpu, x, None, *self.rest)


class HybridModel(Model):
    """`doorbells`: on which the blocks have their meetings already; the model adds the last one, if it needs it.

    `capture`: records the passes over a few tokens; None: they are launched anew each time.
    """

    in_halves = True  # a long prompt's passes

    def __init__(
        self,
        config: ModelConfig,
        blocks: list[Block],
        ends: Ends,
        sides: tuple[CpuSide, GpuSide],
        doorbells: Doorbells,
        capture: Capture | None = None,
    ):
        super().__init__(config, blocks, ends, sides[0])
        self.gpu, self.doorbells, self.capture = sides[1], doorbells, capture
        self.on_gpu = sum(block.attention.side is self.gpu for block in blocks)  # the first so many
        self.meets = [isinstance(block.feed_forward, OffloadedFFN | SplitMoE) for block in blocks]
        self.last = None if self.output.side is self.gpu else LastPart(self)
        self.steps: dict[int, DecodeStep] = {}  # by tokens

    def phases(self, batch: Batch, layers: list[Any], pace: Pace) -> Phases:
        """As `Model.phases`, from any thread; stops behind a layer, where GPU and CPU are done with what they have.

        OffloadError once a pass has failed, or the model is closed; GpuMemoryError, after which others may follow. A
        GPU's kernels trust what they read, so it is checked here that every page exists.
        """
        self.doorbells.check_usable()
        self.gpu.use()
        check_context(batch.block_table, batch.sequence, batch.positions, len(layers[0]), "forward")
        with memory_errors():
            try:
                return (yield from super().phases(batch, layers, pace))
            except BaseException:
                self._drop()
                raise

    def _drop(self) -> None:
        """What meetings hold of a pass that does not come to its end; other passes rest where no meeting is open."""
        for block in self.blocks:
            if isinstance(block.feed_forward, OffloadedFFN | SplitMoE):
                block.feed_forward.drop()
        if self.last is not None:
            self.last.meeting.drop()

    def replayed(self, ids: np.ndarray, step: Step, layers: list[Any]) -> np.ndarray:
        count = len(ids)
        if count not in self.steps:
            capture = self.capture if count in SIZES else None
            self.steps[count] = DecodeStep(self, layers, step, capture)
        logits = self.steps[count](ids, step)
        for mixture, experts in zip(self.mixtures, self.steps[count].chosen, strict=True):
            mixture.chosen = experts
        return logits

    def computing(
        self, ids: np.ndarray, step: Step, layers: list[Any], logits_at: np.ndarray | None, pace: Pace
    ) -> Phases:
        """As `Model.computing`; the arrays of `step` are numpy's."""
        x = self.gpu.copy(self.cpu.embed(self.token_embd, ids))  # [T, hidden]
        apart = self.in_halves and logits_at is not None and not len(logits_at)
        parts = halves(step) if apart else [(slice(0, len(ids)), step)]
        chosen: list[dict[int, Array]] = [{} for _ in parts]
        passes = [
            self.passing(x[at], (part, self.gpu.step(part)), layers, logits_at, mine, pace.whole)
            for (at, part), mine in zip(parts, chosen, strict=True)
        ]
        ends = yield from alternate(passes, pace, len(ids), self.gpu.wait)
        logits = None
        if self.last is not None and pace.whole:
            logits = None if logits_at is not None and not len(logits_at) else self.last.logits
        elif self.last is not None and ends[-1] is not None:
            for (_, part), h in zip(parts, ends, strict=True):
                logits = yield from self.passing_on(self.on_gpu, h, None, part, layers, logits_at, pace)
        elif ends[-1] is not None:
            logits = self._host_logits(ends[-1])
        self._note_halves(chosen)
        return logits

    def _note_halves(self, chosen: list[dict[int, Array]]) -> None:
        """What mixtures chose in the parts of a pass that has ended, by block; the last one may not have been asked."""
        for i, block in enumerate(self.blocks[: self.on_gpu]):
            network: Any = block.feed_forward
            if hasattr(network, "chosen"):
                parts = [mine[i] for mine in chosen if i in mine] or [torch.empty((0, 0), dtype=torch.int32)]
                network.chosen = parts[0] if len(parts) == 1 else torch.cat(parts)

    def _host_logits(self, h: Array) -> np.ndarray:
        """[n, vocab] of h [n, hidden]"""
        if len(h) <= HEAD_ROWS:
            return self.gpu.host(self.output(h))
        logits = np.empty((len(h), self.config.vocab_size), np.float32)
        for at in range(0, len(h), HEAD_ROWS):
            logits[at : at + HEAD_ROWS] = self.gpu.host(self.output(h[at : at + HEAD_ROWS]))
        return logits

    def passed(self, x: Array, steps: tuple[Step, Step], layers: list[Any]) -> Array:
        """Of all tokens at once: logits [T, vocab] where the head is the GPU's, else None."""
        (h,) = finished(alternate([self.passing(x, steps, layers)], Pace()))
        return None if h is None else self.output(h)

    def passing(
        self,
        x: Array,
        steps: tuple[Step, Step],
        layers: list[Any],
        logits_at: np.ndarray | None = None,
        chosen: dict[int, Array] | None = None,
        onward: bool = True,
    ) -> Stages:
        """Blocks; where the head is the GPU's, what it is to multiply, else None. `steps`: the same on CPU and GPU.

        Three stages a layer: attention; what may be the CPU's is submitted; it is collected. Of two halves in turn, one
        a stage behind the other, the CPU computes its part of one while the GPU's attention is on the other, and never
        is one submitted before the last one was collected. `chosen` receives what mixtures choose, by block. Not
        `onward`: what the CPU has behind the GPU's layers is left to the caller, who gets what they made of x.
        """
        gpu, step, eps, last, rest = self.gpu, steps[1], self.config.rms_eps, len(self.blocks) - 1, None
        for i, (block, layer) in enumerate(zip(self.blocks[: self.on_gpu], layers[: self.on_gpu], strict=True)):
            h = gpu.rms_norm(x, block.attn_norm, eps, add=rest)
            if i == last and logits_at is not None and not len(logits_at):
                block.attention.project(h, step, layer)
                return None
            attended = block.attention(h, step, layer)
            if i == last and logits_at is not None:
                x, attended = gpu.rows(x, logits_at), gpu.rows(attended, logits_at)
            h = gpu.rms_norm(x, block.ffn_norm, eps, add=attended)
            network: Any = block.feed_forward
            yield False
            if self.meets[i]:
                network.submit(h)
                yield False
                rest = network.collect()
            else:
                rest = network(h)
                yield False
            if chosen is not None and hasattr(network, "chosen"):
                chosen[i] = network.chosen
            yield True
        if self.last is None:
            return gpu.rms_norm(x, self.output_norm, eps, add=rest)
        if not onward:
            return gpu.host(x.add_(rest))
        yield False
        self.last.meeting.submit(x.add_(rest), None, None)
        yield False
        self.last.rest = steps[0], layers, logits_at
        self.last.meeting.collect()
        return None

    def choices(self) -> list[np.ndarray]:
        self.gpu.use()
        return super().choices()

    @memory_errors()
    def rehearse(self, layers: list[Any], pages: int | None = None) -> None:
        """As `Model.rehearse`; what is recorded is the pass of one token, others are when they first come.

        The GPU's parts alone first, the longest pass before all others: its memory is had now, or never. Then, with the
        CPU: passes for each number of tokens that has flags, one without, one whose attention is expanded.
        """
        self.recordable, pages = layers, pages or len(layers[0])
        if self.gpu.compiles:
            try:
                rehearse_gpu(self, layers, pages)
            except torch.OutOfMemoryError as error:
                found = str(error).partition(". ")[0]
                remedy = "lower --gpu-memory by what others use, or use a shorter --context"
                raise ResourceError(f"the longest pass does not fit on the GPU: {found}", "", remedy) from None
        for tokens in range(1, MOST_TOKENS + 1):
            batch = batch_of(tokens, pages)
            if tokens == 1:
                self.forward(batch, layers)
            else:
                DecodeStep(self, layers, self.step(batch), capture=None)(batch.ids, self.step(batch))
        batch = batch_of(MET, pages)
        self.forward(replace(batch, logits_at=batch.logits_at[-1:]), layers)
        expanded = replace(self.step(batch), runs=(run_of(batch, 0),), few=batch.logits_at[:0])
        self.compute(batch.ids, expanded, layers, batch.logits_at[:0])

    def close(self) -> None:
        self.doorbells.close()
