"""llama.cpp's tokenizer over a vocabulary given as Python lists."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import pytest

LOG = llama_cpp.llama_log_callback(lambda level, text, user: None)


def write_vocabulary(path: Path, metadata: dict[str, Any]) -> Path:
    """A file of no tensors; `metadata` as hetero.gguf would return it."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


class LlamaVocabulary:
    def __init__(self, path: Path):
        llama_cpp.llama_log_set(LOG, ctypes.c_void_p(0))
        settings = llama_cpp.llama_model_default_params()
        settings.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            pytest.fail(f"llama.cpp cannot load {path}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def encode(self, text: str, special: bool = False) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, False, special)
        assert count >= 0, "there is room for one token a byte"
        return list(ids[:count])

    def decode(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.piece(id) for id in ids)

    def piece(self, id: int) -> bytes:
        buffer = ctypes.create_string_buffer(512)
        count = llama_cpp.llama_token_to_piece(self._vocab, id, buffer, 512, 0, True)
        return buffer.raw[:count]

    def close(self) -> None:
        llama_cpp.llama_model_free(self._model)
