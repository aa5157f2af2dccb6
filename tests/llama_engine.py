"""llama.cpp as an oracle, through llama-cpp-python's low-level API."""

import contextlib
import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import gguf
import llama_cpp as llama
import numpy as np


@llama.llama_log_callback
def SILENT(level: int, text: bytes, user: ctypes.c_void_p) -> None:
    """A module-level name: ctypes would free the callback with its last reference."""


class LlamaCpp(contextlib.AbstractContextManager):
    """llama.cpp on one file. The defaults are exact: f32 cache, weights not repacked, and flash attention off,
    because with it an f32 cache is silently read as f16."""

    def __init__(
        self,
        path: Path,
        kv: str = "f32",
        *,
        context: int = 512,
        threads: int = 1,
        flash: bool = False,
        repack: bool = False,
    ):
        llama.llama_log_set(SILENT, ctypes.c_void_p(0))
        model_settings = llama.llama_model_default_params()
        model_settings.n_gpu_layers, model_settings.use_extra_bufts = 0, repack
        settings = llama.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = context
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = gguf.GGMLQuantizationType[kv.upper()]
        settings.flash_attn_type = int(flash)
        self.model = llama.llama_model_load_from_file(str(path).encode(), model_settings)
        if not self.model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        self.vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.context = llama.llama_init_from_model(self.model, settings)
        self.batch = llama.llama_batch_init(context, 0, 1)
        self.position = 0

    def eval(self, ids: Sequence[int], all_logits: bool = True) -> np.ndarray:
        """Feeds the next tokens in one batch; float32 [n, vocab], n = 1 (the last token) unless `all_logits`."""
        batch, last = self.batch, len(ids) - 1
        batch.n_tokens = len(ids)
        for i, id in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(id), self.position + i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = all_logits or i == last
        if status := llama.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode returned {status}")
        self.position += len(ids)
        shape = (len(ids) if all_logits else 1, self.vocab_size)
        return np.ctypeslib.as_array(llama.llama_get_logits(self.context), shape=shape).copy()

    def forget(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self.context), False)
        self.position = 0

    def __exit__(
        self, type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        llama.llama_batch_free(self.batch)
        llama.llama_free(self.context)
        llama.llama_model_free(self.model)
