"""llama.cpp at its fast settings, as a contestant: flash attention where it can, prompts in batches of 512."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from hetero.errors import FileError, ResourceError, UnsupportedError
from hetero.probe import resident_bytes
from hetero.reference import silence

KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}  # ggml's type numbers
FLASH_AUTO = -1


def llama_cpp() -> Any:
    try:
        import llama_cpp
    except ImportError as error:
        raise UnsupportedError(
            "llama-cpp-python is not installed", remedy="pip install 'hetero[llama]' (it compiles for some minutes)"
        ) from error
    return llama_cpp


class LlamaCpp:
    """One sequence on the CPU. `rearranged`: with the copy of the weights that its own kernels like best."""

    def __init__(self, path: str, context: int, kv: str, threads: int, rearranged: bool):
        self._api = api = llama_cpp()
        silence(api)
        api.llama_backend_init()
        started = perf_counter()
        model = api.llama_model_default_params()
        model.n_gpu_layers, model.use_extra_bufts = 0, rearranged
        model.use_mmap = False  # weights in memory of its own, as ours: nobody waits for a page cache under pressure
        self._model = api.llama_model_load_from_file(path.encode(), model)
        if not self._model:
            raise FileError(f"llama.cpp could not load {path}", remedy="it may not know this model or quantization")
        self._vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = context
        params.n_ubatch = min(context, 512)
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = FLASH_AUTO
        params.type_k = params.type_v = KV_TYPES[kv]
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise ResourceError(f"llama.cpp could not make a context of {context} tokens", remedy="lower --depth")
        self._memory = api.llama_get_memory(self._context)
        self._batch = api.llama_batch_init(context, 0, 1)
        self._cached: list[int] = []
        self.load_seconds = perf_counter() - started
        self.decode([0], 1)

    def decode(self, ids: Sequence[int], count: int) -> float:
        """Tokens per second of `count` tokens generated after `ids` and one more, as Hetero.decode counts."""
        if self._cached[: len(ids) - 1] != list(ids[:-1]):
            self._forget(0)
            self._feed(ids[:-1])
        self._forget(len(ids) - 1)
        last = self._next(ids[-1:])
        started = perf_counter()
        for _ in range(count):
            last = self._next([last])
        return count / (perf_counter() - started)

    def prefill(self, ids: Sequence[int]) -> float:
        """Tokens per second until the first new token, from an empty context."""
        self._forget(0)
        started = perf_counter()
        self._next(ids)
        return len(ids) / (perf_counter() - started)

    def prefill_all(self, ids: Sequence[int]) -> float:
        """With logits for every token."""
        self._forget(0)
        started = perf_counter()
        self._feed(ids, every=True)
        self._logits(len(ids))
        return len(ids) / (perf_counter() - started)

    def facts(self) -> dict[str, Any]:
        return {"load_seconds": self.load_seconds, "peak_resident_bytes": resident_bytes()}

    def _forget(self, kept: int) -> None:
        self._api.llama_memory_seq_rm(self._memory, 0, kept, -1)
        del self._cached[kept:]

    def _next(self, ids: Sequence[int]) -> int:
        self._feed(ids)
        return int(self._logits(1).argmax())

    def _feed(self, ids: Sequence[int], every: bool = False) -> None:
        """Logits of the last token, or of every one."""
        if not len(ids):
            return
        batch, start = self._batch, len(self._cached)
        batch.n_tokens = len(ids)
        for at, id in enumerate(ids):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = int(id), start + at, 1
            batch.seq_id[at][0] = 0
            batch.logits[at] = every or at == len(ids) - 1
        if status := self._api.llama_decode(self._context, batch):
            raise ResourceError(f"llama.cpp failed on {len(ids)} tokens (llama_decode returned {status})")
        self._cached += [int(id) for id in ids]

    def _logits(self, rows: int) -> np.ndarray:
        """float32 [rows, vocab]"""
        shape = (rows, self._vocab_size)
        return np.ctypeslib.as_array(self._api.llama_get_logits(self._context), shape=shape).copy()

    def close(self) -> None:
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)
