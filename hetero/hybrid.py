"""The forward pass on a GPU and a CPU: the first layers' attention is the GPU's, and with it the residual stream.

A layer's routed experts, whole networks, or the layers behind and the head may be the CPU's: what it computes in the
middle of the GPU's pass are meetings (hetero.offload). Between `submit` and `collect` of one the GPU computes what it
has of the same layer, or the other half of the prompt.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cpu_kernels.attention import check_context
from hetero.attention import Step
from hetero.cache import PAGE
from hetero.config import ModelConfig
from hetero.gpu_side import GpuSide
from hetero.graph import SIZES, Capture, DecodeStep
from hetero.model import Batch, Block, Ends, Model, run_of
from hetero.moe import DenseFFN, MoE, Router
from hetero.offload import Doorbells, Meeting
from hetero.side import Array, CpuSide

HALVES_FROM = 256  # tokens of a pass from which it is computed in two halves
REHEARSED = (1, 2, 3, 4, 16, 72)  # tokens: for each number of columns that has kernels of its own
Phases = Generator[None, None, Any]


class OffloadedFFN(DenseFFN):
    """A dense network, all of it the CPU's: what the meeting computes."""

    def __init__(self, meeting: Meeting):
        self._meeting = meeting

    def submit(self, x: Array) -> None:
        self._meeting.submit(x, None, None)

    def collect(self) -> Array:
        """[T, hidden]"""
        return self._meeting.collect()

    def __call__(self, x: Array) -> Array:
        self.submit(x)
        return self.collect()


class SplitMoE(MoE):
    """Routed experts on both sides, or all of them on the CPU; `meeting` computes those, and knows which they are.

    `routed`: the GPU's experts, None without any; `shared`: the shared one's weights if it is the GPU's.
    """

    def __init__(self, router: Router, routed: Any, shared: Any, side: GpuSide, meeting: Meeting):
        super().__init__(router, routed, shared, side)
        self._meeting, self._here = meeting, None

    def submit(self, x: Array) -> None:
        self.chosen, weights = self.router(x)
        self._meeting.submit(x, self.chosen, weights)
        self._here = self._experts(self.routed, x, self.chosen, weights, self.shared)

    def collect(self) -> Array:
        """[T, hidden]"""
        here, self._here = self._here, None
        return self._meeting.collect(add=here)

    def __call__(self, x: Array) -> Array:
        self.submit(x)
        return self.collect()


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


def alternate(passes: Sequence[Phases]) -> list[Any]:
    """What generators return, advanced in turn, each a phase ahead of the next."""
    results: list[Any] = [None] * len(passes)
    waiting = list(range(len(passes)))
    ahead = [waiting[:i] for i in range(1, len(passes))]
    while waiting:
        for i in ahead.pop(0) if ahead else tuple(waiting):
            try:
                next(passes[i])
            except StopIteration as end:
                results[i] = end.value
                waiting.remove(i)
    return results


class LastPart:
    """What the CPU computes behind the GPU's layers: the blocks there, and the head."""

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
        self._meets = [isinstance(block.feed_forward, OffloadedFFN | SplitMoE) for block in blocks]
        self.last = None if self.output.side is self.gpu else LastPart(self)
        self.steps: dict[int, DecodeStep] = {}  # by tokens

    def forward(self, batch: Batch, layers: list[Any]) -> np.ndarray | None:
        """As `Model.forward`. A GPU's kernels trust what they read, so it is checked here that every page exists."""
        check_context(batch.block_table, batch.sequence, batch.positions, len(layers[0]), "forward")
        return super().forward(batch, layers)

    def replayed(self, ids: np.ndarray, step: Step, layers: list[Any]) -> np.ndarray:
        count = len(ids)
        if count not in self.steps:
            capture = self.capture if count in SIZES else None
            self.steps[count] = DecodeStep(self, layers, step, len(layers[0]), capture)
        logits = self.steps[count](ids, step)
        for mixture, experts in zip(self.mixtures, self.steps[count].chosen, strict=True):
            mixture.chosen = experts
        return logits

    def compute(self, ids: np.ndarray, step: Step, layers: list[Any], logits_at: np.ndarray | None = None) -> Any:
        """As `Model.compute`; the arrays of `step` are numpy's."""
        x = self.gpu.copy(self.cpu.embed(self.token_embd, ids))  # [T, hidden]
        parts = halves(step) if logits_at is not None and not len(logits_at) else [(slice(0, len(ids)), step)]
        passes = [self.passing(x[at], (part, self.gpu.step(part)), layers, logits_at) for at, part in parts]
        (*_, logits) = alternate(passes)
        if self.last is not None and (logits_at is None or len(logits_at)):
            return self.last.logits
        return None if logits is None else self.gpu.host(logits)

    def passed(self, x: Array, steps: tuple[Step, Step], layers: list[Any]) -> Array:
        """Of all tokens at once: logits [T, vocab] where the head is the GPU's, else None."""
        return alternate([self.passing(x, steps, layers)])[0]

    def passing(
        self, x: Array, steps: tuple[Step, Step], layers: list[Any], logits_at: np.ndarray | None = None
    ) -> Phases:
        """Blocks, and the head where it is the GPU's: then its logits, else None. `steps`: the same on CPU and GPU.

        Three phases a layer: attention; what may be the CPU's is submitted; it is collected. Of two halves in turn, one
        a phase behind the other, the CPU computes its part of one while the GPU's attention is on the other, and never
        is one submitted before the last one was collected.
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
            yield
            if self._meets[i]:
                network.submit(h)
                yield
                rest = network.collect()
            else:
                rest = network(h)
                yield
            yield
        if self.last is None:
            return self.output(gpu.rms_norm(x, self.output_norm, eps, add=rest))
        yield
        self.last.meeting.submit(x.add_(rest), None, None)
        yield
        self.last.rest = steps[0], layers, logits_at
        self.last.meeting.collect()
        return None

    def rehearse(self, layers: list[Any]) -> None:
        """As `Model.rehearse`; what is recorded is the pass of one token, others are when they first come."""
        self.recordable = layers
        capacity = PAGE * len(layers[0])
        for tokens in (count for count in REHEARSED if count <= capacity):
            at, table = np.arange(tokens), np.zeros((1, -(-tokens // PAGE)), np.int32)
            batch = Batch(
                ids=at * 0,
                positions=at.astype(np.int32),
                sequence=np.zeros(tokens, np.int32),
                block_table=table,
                lengths=np.array([tokens], np.int32),
                logits_at=at if tokens == 1 else at[-1:],
            )
            self.forward(batch, layers)
        expanded = replace(self.step(batch), runs=(run_of(batch, 0),), few=at[:0])
        self.compute(batch.ids, expanded, layers, at[:0])

    def close(self) -> None:
        self.doorbells.close()
