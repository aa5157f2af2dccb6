"""llama.cpp as a judge: the same file through llama-cpp-python's low-level API, at its exact settings.

Exact means: flash attention off (with it on, f32 KV silently becomes f16) and no repacked weights (`use_extra_bufts`).
"""

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hetero.errors import FileError, ResourceError, UnsupportedError

KV_TYPES = {"f32": 0, "f16": 1}  # ggml's type numbers; quantized V needs flash attention


def silence(llama_cpp: Any) -> None:
    """From now on the package, and its ggml, say nothing."""
    llama_cpp.llama_log_set(_nowhere(llama_cpp), ctypes.c_void_p(0))


@cache
def _nowhere(llama_cpp: Any) -> Any:
    """C holds a pointer to it, for as long as the process lives: whoever logs last, no model may be left."""
    return llama_cpp.llama_log_callback(lambda level, text, user: None)


class LlamaCpp:
    """One sequence on the CPU; `logits` starts from an empty cache each time."""

    def __init__(self, path: str | Path, *, context: int, kv: str, threads: int | None):
        self._api = api = llama_cpp_api(kv)
        silence(api)
        api.llama_backend_init()
        model = api.llama_model_default_params()
        model.n_gpu_layers, model.use_extra_bufts = 0, False
        self._model = api.llama_model_load_from_file(str(path).encode(), model)
        if not self._model:
            raise FileError(f"llama.cpp could not load {path}", remedy="it may not know this model or quantization")
        self.vocab_size: int = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._context = api.llama_init_from_model(self._model, _context_params(api, context, kv, threads))
        if not self._context:
            api.llama_model_free(self._model)
            raise ResourceError(f"llama.cpp could not make a context of {context} tokens", remedy="lower --window")
        self._batch = api.llama_batch_init(context, 0, 1)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """float32 [T, vocab]"""
        api, batch = self._api, self._batch
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        batch.n_tokens = len(ids)
        for at, id in enumerate(ids):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = int(id), at, 1, 1
            batch.seq_id[at][0] = 0
        status = api.llama_decode(self._context, batch)
        if status:
            raise ResourceError(f"llama.cpp failed on {len(ids)} tokens (llama_decode returned {status})")
        values = np.ctypeslib.as_array(api.llama_get_logits(self._context), shape=(len(ids), self.vocab_size))
        return values.copy()  # the next call overwrites them

    def close(self) -> None:
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)


def llama_cpp_api(kv: str) -> Any:
    """The package, if it is there and `kv` is a type it can be exact with."""
    if kv not in KV_TYPES:
        raise UnsupportedError(f"kv {kv} for llama.cpp", "f32 and f16 are exact there", "add --reference-kv f16")
    try:
        import llama_cpp
    except ImportError as error:
        raise UnsupportedError(
            "llama-cpp-python is not installed", remedy="pip install 'hetero[llama]' (it compiles for some minutes)"
        ) from error
    return llama_cpp


def _context_params(api: Any, context: int, kv: str, threads: int | None) -> Any:
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = context
    params.n_ubatch = min(context, 512)
    params.n_threads = params.n_threads_batch = threads or len(os.sched_getaffinity(0))
    params.flash_attn_type = 0  # off
    params.type_k = params.type_v = KV_TYPES[kv]
    return params
