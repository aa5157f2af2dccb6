"""What a pass takes of a GPU's memory beside weights and cache, of models in their true size, and what the plan counts.

The true wrappers run on tensors without data; what torch would allocate for them, and when it is given back, is summed.
"""

import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gpu_kernels
import hetero.hybrid
from gpu_kernels import attention_expanded
from hetero import RunConfig
from hetero.gguf import Tensor
from hetero.gpu_side import GpuSide
from hetero.gpu_weights import GpuWeights, Source, VramReader
from hetero.hybrid import HybridModel
from hetero.model import Ends
from hetero.moe import DenseFFN
from hetero.offloaded_networks import SplitMoE
from hetero.rehearsal import Alone, batch_of
from hetero.synthetic import make_slice
from hetero.weights import block, head, router
from placement import Description, Settings, cost, describe, preset
from placement.budget import GPU_CONTEXT, GPU_GRAPH, budget, resolve

CHUNK, CARD = 1024, 24 << 30
MIB = 1 << 20


class Allocations(TorchDispatchMode):
    """Bytes of tensors without data that are made inside: how many there are now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._held = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        number, size = storage._cdata, storage.nbytes()
        if number not in self._held:
            self._held.add(number)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, number, size)

    def _forget(self, number: int, size: int) -> None:
        self._held.discard(number)
        self.live -= size


class Device(gpu_kernels.Device):
    def launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        pass


class Side(GpuSide):
    def copy(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to("meta")

    def host(self, array: torch.Tensor) -> Any:
        return 0.0


class Reader(VramReader):
    """Reads nothing."""

    def matrix(self, name: str, experts: Sequence[int] | None = None) -> gpu_kernels.Matrix:
        tensor = self.tensors[name]
        *stack, rows, columns = tensor.shape
        count = None if not stack else stack[0] if experts is None else len(experts)
        return gpu_kernels.Matrix(self.side.device, tensor.type, rows, columns, count)

    def whole(self, name: str) -> np.ndarray:
        return np.zeros(4 * self.tensors[name].shape[-1], np.uint8)


def gpu_model(name: str, capability: int, monkeypatch: pytest.MonkeyPatch) -> HybridModel:
    """A dense layer, a layer with experts and the head, all on the GPU, most of the experts aside."""
    monkeypatch.setattr("hetero.planning.free_memory", lambda: 10**12)
    monkeypatch.setattr("gpu_kernels.experts._many", lambda *_: None)  # reads which were chosen; its products are ffn's
    for module in ("products", "heads"):  # without a GPU it goes another way
        monkeypatch.setattr(f"gpu_kernels.{module}.half_product", half_product)
    made = make_slice(name, 1, RunConfig(device="cpu"), 512)
    config, side = made.config, Side(Device(torch.device("meta"), None, capability, sms=128), gpu_kernels)
    tensors = {t.name: Tensor(t.name, t.shape, t.type, np.zeros(0, np.uint8)) for t in made.model.tensors}
    weights = GpuWeights(Reader(Source(None, tensors), None, side, 0, lambda *_: None))  # type: ignore[arg-type]
    meeting: Any = Alone()
    shared = weights.gated(1, "_shexp")
    mixture = SplitMoE(router(weights, config, 1), weights.resident(1, (0, 3), config.experts), shared, side, meeting)
    blocks = [
        block(weights, config, 0, DenseFFN(weights.gated(0, ""), side)),
        block(weights, config, 1, mixture),
    ]
    embed = lambda _, ids: np.zeros((len(ids), config.hidden_size), np.float32)  # noqa: E731
    cpu: Any = SimpleNamespace(pool=None, embed=embed)
    ends = Ends(None, *head(weights, tensors))  # type: ignore[arg-type]
    return HybridModel(config, blocks, ends, (cpu, side), SimpleNamespace(meetings=[]))  # type: ignore[arg-type]


def half_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.empty((*a.shape[:-1], b.shape[-1]), device=a.device)


def planned(name: str, kv: Any, context: int) -> int:
    """Of the buffers those that hold what a pass computes."""
    machine = describe(Description(memory=1 << 40, gpu="rtx-4090", socket="epyc-genoa"))
    model = preset(name)
    needs = budget(model, machine, resolve(model, machine, Settings(context=context, kv=kv)))
    layers = (sum(t.nbytes for t in ts) for ts in model.routed_by_layer.values())
    ring = 24 * (max(layers) // model.dimensions.experts) + 3 * 4 * 4096 * model.dimensions.hidden_size
    return needs.gpu_buffers - GPU_CONTEXT - GPU_GRAPH - ring


@pytest.mark.parametrize(
    ("name", "kv", "context"),
    [
        ("deepseek-v3:q4_k_m", "f16", 32768),
        ("deepseek-v3:q4_k_m", "q8_0", 163840),
        ("deepseek-v3:q4_k_m", "f16", 2048),
        ("deepseek-v2-lite:q4_k_m", "f16", 32768),
        ("kimi-k2:q8_0", "f16", 131072),
    ],
)
@pytest.mark.parametrize("capability", [89, 90])
def test_no_pass_takes_more_than_the_plan_counts(
    name: str, kv: str, context: int, capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gpu_model(name, capability, monkeypatch)
    pages = context // 64
    layers = [model.gpu.cache_layer(pages, kv, model.config.cache_width) for _ in model.blocks]
    counted, peaks = planned(name, kv, context), dict[tuple[int, bool], int]()
    for tokens in (1, 8, 100, CHUNK):  # the last ones of the context
        batch = batch_of(tokens, pages, context - tokens)
        for logits_at in (None, batch.logits_at[:0]):
            with Allocations() as memory:
                model.compute(batch.ids, model.step(batch), layers, logits_at)
            assert memory.live <= 4 * tokens * model.config.experts_used, "but for the choice of experts"
            peaks[tokens, logits_at is None] = memory.peak
    print(name, capability, {key: peak >> 20 for key, peak in peaks.items()}, counted >> 20)
    assert max(peaks.values()) <= counted, (peaks, counted)
    assert counted - max(peaks.values()) < 0.03 * CARD, (peaks, counted)


def test_what_the_plan_counts_by_is_what_is_done() -> None:
    assert cost.EXPANDED_BYTES == attention_expanded.EXPANDED_BYTES
    assert cost.HEAD_ROWS == hetero.hybrid.HEAD_ROWS
    for capability in (80, 86, 89, 90, 120):
        assert cost.KEYS % attention_expanded.choose_flash_tiling(capability).keys == 0
    d = preset("deepseek-v3:q4_k_m").dimensions
    assert cost.expanded_bytes(d, 4096) == 2 * 4096 * (576 + 128 * 256), "all heads at once"
    assert cost.expanded_bytes(d, 32768) == 2 * 32768 * 576 + 512 * MIB
    assert cost.expanded_bytes(d, 4_000_000) == 2 * 4_000_000 * (576 + 256), "one head"
    assert cost.logits_bytes(d) == 128 * 129280 * 4
