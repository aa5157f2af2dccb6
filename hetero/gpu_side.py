"""The GPU as a side: verbs of gpu_kernels, bound to a device; its arrays are torch tensors.

Or of gpu_kernels.twins, the same in plain torch, with which everything that follows runs where there is no GPU.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from traceback import clear_frames
from typing import Any, NamedTuple

import numpy as np
import torch

from hetero.attention import Step
from hetero.errors import GpuMemoryError
from hetero.side import Array, Verb


class Expansion(NamedTuple):
    """W_uk and W_uv, which are dequantized head by head: all heads of V3 would be 134 MB of float32."""

    k_b: Any
    v_b: Any


@contextmanager
def memory_errors() -> Iterator[None]:
    """Around a pass: where torch finds no memory for it, a GpuMemoryError, that keeps none of the pass's arrays.

    By then torch has given back what it held unused, and tried again. More given back would be for others to take.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        clear_frames(error.__traceback__)  # whoever handles it needs the memory
        said = ". ".join(str(error).split(". ")[:2])  # how much was asked for; then come statistics and advice
        remedy = "end what else uses the GPU, or start with a lower --gpu-memory"
        raise GpuMemoryError(f"the GPU's memory ran out in a pass: {said}", "", remedy) from None


class GpuSide:
    """`verbs`: gpu_kernels, or gpu_kernels.twins."""

    def __init__(self, device: Any, verbs: Any):
        self.device, self.verbs, self.use = device, verbs, device.use
        self.pinned = device.torch_device.type == "cuda"
        self.compiles = device.driver is not None  # kernels, at their first launch
        self.linear: Verb = partial(verbs.linear, device)
        self.linear_heads: Verb = partial(verbs.linear_heads, device)
        self.linear_heads_transposed: Verb = partial(verbs.linear_heads_transposed, device)
        self.rms_norm: Verb = partial(verbs.rms_norm, device)
        self.rope: Verb = partial(verbs.rope, device)
        self.route: Verb = partial(verbs.route, device)
        self.ffn: Verb = partial(verbs.ffn, device)
        self.mla_absorbed: Verb = partial(verbs.mla_absorbed, device)
        self.cache_layer: Verb = partial(verbs.cache_layer, device)
        self._write_latent = partial(verbs.write_latent, device)
        self._mla_expanded = partial(verbs.mla_expanded, device)
        self._routed_experts = partial(verbs.routed_experts, device)
        self.experts: Verb = self.sum_of_experts

    def copy_page(self, layer: Any, source: int, target: int) -> None:
        """In order with what is computed."""
        self.use()
        for plane in (layer.values, layer.scales):
            if plane is not None:
                plane[target].copy_(plane[source])

    def write_latent(self, both, q_rows, norm, eps, step, layer) -> None:
        self._write_latent(both, q_rows, norm, eps, step.cos, step.sin, layer, step.slots)

    def expand(self, k_b: Any, v_b: Any) -> Expansion:
        return Expansion(k_b, v_b)

    def mla_expanded(self, q, expanded, layer, row, positions, scale, transposed) -> Array:
        return self._mla_expanded(q, expanded.k_b, expanded.v_b, layer, row, positions, scale, transposed)

    def sum_of_experts(self, routed, x, ids, weights, shared) -> Array:
        """`routed` None: no expert is here. None where none is, and no shared one either."""
        values = None if shared is None else self.ffn(shared, x)
        if routed is None:
            return values
        chosen = self._routed_experts(routed, x, ids, weights)
        return chosen if values is None else chosen.add_(values)

    def rows(self, x: Array, at: np.ndarray) -> Array:
        return x.index_select(0, self.copy(at))

    def assembled(self, parts: Iterable[tuple[np.ndarray, Array]], count: int) -> Array:
        made: Array = None
        for at, rows in parts:
            made = rows.new_empty((count, *rows.shape[1:])) if made is None else made
            made.index_copy_(0, self.copy(at), rows)
        return made

    def copy(self, array: np.ndarray) -> Array:
        """The CPU's array, here; in order with what is computed."""
        source = torch.from_numpy(np.ascontiguousarray(array))
        if not self.pinned:
            return source.clone()
        return source.pin_memory().to(self.device.torch_device, non_blocking=True)

    def step(self, step: Step) -> Step:
        """With arrays of this side."""
        copy = self.copy
        return Step(
            positions=copy(step.positions),
            sequence=copy(step.sequence),
            block_table=copy(step.block_table),
            slots=copy(step.slots),
            cos=copy(step.cos),
            sin=copy(step.sin),
            runs=step.runs,
            few=step.few,
        )

    def host(self, array: Array) -> np.ndarray:
        """A copy for the CPU, when it is computed."""
        return array.to("cpu", copy=True).numpy()

    def wait(self) -> None:
        """Until all that was launched is computed."""
        if self.pinned:
            torch.cuda.current_stream().synchronize()

    def allocated(self) -> int:
        """Bytes of GPU memory in use by tensors; what others have left behind is given back."""
        if self.pinned:
            torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(self.device.torch_device) if self.pinned else 0
