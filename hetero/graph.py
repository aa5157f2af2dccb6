"""The pass over a few tokens on a GPU at fixed addresses, recorded as one CUDA Graph and replayed.

What changes from pass to pass is written into pinned memory, which the graph's first node copies to the GPU; its last
one copies the logits back. A graph is never patched: there is one for each number of tokens.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch

from hetero.attention import Step
from hetero.errors import KernelError
from hetero.gpu_side import GpuSide
from hetero.recorded import fixed_step, write_step

SIZES = (1, 2, 4, 8)  # tokens that have a graph of their own
WARM_PASSES = 2  # before a pass is recorded: all kernels are loaded, all buffers are there
ALIGNMENT = 64  # bytes, of each input
Launch = Callable[[], None]


class CudaCapture:
    """The few calls of torch.cuda that recording takes."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def __call__(self, warm: Launch, launch: Launch) -> Launch:
        """What replays `launch`. `warm` runs it as it is, to its end."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_PASSES):
                warm()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: other threads may ask CUDA for memory meanwhile
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                launch()
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise KernelError(f"recording a CUDA Graph failed: {first}", "", "run with --no-graph") from error
        return graph.replay


Capture = Callable[[Launch, Launch], Launch]


class Inputs:
    """What a pass reads, in one stretch of pinned memory and one of the GPU's: embedding x [T, hidden], and a Step."""

    def __init__(self, side: GpuSide, step: Step, hidden: int):
        pages = step.block_table.shape[1]
        self._fields: list[tuple[int, tuple[int, ...], Any]] = []
        self._size = 0
        fixed_step(step, pages, self._add)
        self._add((len(step.positions), hidden), np.float32)
        self._source = torch.zeros(self._size, dtype=torch.uint8, pin_memory=side.pinned)
        self._target = torch.zeros(self._size, dtype=torch.uint8, device=side.device.torch_device)
        host, there = iter(map(self._in_host, self._fields)), iter(map(self._on_device, self._fields))
        self.host_step = fixed_step(step, pages, lambda shape, dtype: next(host))
        self.step = fixed_step(step, pages, lambda shape, dtype: next(there))
        self.host_x, self.x = next(host), next(there)

    def _add(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        self._fields.append((self._size, shape, dtype))
        nbytes = prod(shape) * np.dtype(dtype).itemsize
        self._size += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return np.zeros(0)

    def _in_host(self, field: tuple[int, tuple[int, ...], Any]) -> np.ndarray:
        start, shape, dtype = field
        end = start + prod(shape) * np.dtype(dtype).itemsize
        return self._source.numpy()[start:end].view(dtype).reshape(shape)

    def _on_device(self, field: tuple[int, tuple[int, ...], Any]) -> Any:
        start, shape, dtype = field
        kind = torch.from_numpy(np.zeros(0, dtype)).dtype
        return self._target[start : start + prod(shape) * kind.itemsize].view(kind).view(shape)

    def upload(self) -> None:
        """In order with what is computed."""
        self._target.copy_(self._source, non_blocking=True)


class DecodeStep:
    """The pass of as many tokens as `step` has, of a HybridModel over one cache. `capture` None: it is launched anew.

    The block table of `step` is as wide as those of all others: that fixes into how many splits a context is cut.
    """

    def __init__(self, model: Any, layers: list[Any], step: Step, capture: Capture | None):
        side, config = model.gpu, model.config
        self.model, self.layers, self.tokens = model, layers, len(step.positions)
        self.inputs = Inputs(side, step, config.hidden_size)
        self._logits = torch.zeros((self.tokens, config.vocab_size), pin_memory=side.pinned)
        self._of_last_part: np.ndarray | None = None
        self.chosen: list[Any] = []
        self._capture, self._replay = capture, self._launch if capture is None else None

    def _launch(self) -> None:
        self.inputs.upload()
        logits = self.model.passed(self.inputs.x, (self.inputs.host_step, self.inputs.step), self.layers)
        if logits is not None:
            self._logits.copy_(logits, non_blocking=True)
        self.chosen = [mixture.chosen for mixture in self.model.mixtures]

    def _run(self, launch: Launch, captured: bool) -> None:
        """To its end; the CPU's last part reads the step's fixed arrays, which is why it may be recorded."""
        model = self.model
        if model.last is not None:
            model.last.rest, model.last.logits = (self.inputs.host_step, self.layers, None), self._of_last_part
        model.doorbells.run(self.tokens, launch, captured)
        if not model.doorbells.meetings:
            model.gpu.wait()
        if model.last is not None:
            self._of_last_part = model.last.logits

    def __call__(self, ids: np.ndarray, step: Step) -> np.ndarray:
        """float32 [T, vocab], overwritten by the next call."""
        write_step(self.inputs.host_step, step)
        self.model.cpu.embed(self.model.token_embd, ids, out=self.inputs.host_x)
        if self._replay is None:
            assert self._capture is not None, "without a capture there is nothing to wait for"
            self._replay = self._capture(lambda: self._run(self._launch, captured=False), self._launch)
        self._run(self._replay, captured=self._capture is not None)
        return self._logits.numpy() if self._of_last_part is None else self._of_last_part
