"""Types that have no layout of their own on the GPU: their blocks stay as the file has them, one module for each type.

A module has

    VALUES, BYTES           of a block, as gguf.GGML_QUANT_SIZES
    decode(block, table, c) device function: columns c of blocks at these addresses -> float32
    twin(blocks)            uint8 [n, BYTES] -> float32 [n, VALUES], the same in plain torch
    table()                 where a codebook is read: its values, int8, flat; `decode` gets them as `table`, else None

Exact: a scale of 11 significant bits times small integers has at most 22, so every product fits in float32 and whether
a product and a sum are fused makes no difference. Blocks have an even number of bytes and no better alignment: device
functions read single bytes, which a block's neighbours in a warp find in the first-level cache.
"""

import importlib
from functools import cache
from types import ModuleType
from typing import Any

import torch

from . import codebook

TYPES = frozenset(
    {"Q2_K", "Q3_K", "Q4_1", "Q5_1", "IQ4_NL", "IQ3_XXS", "IQ3_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M"}
)


@cache
def load_type(type: str) -> ModuleType:
    if type not in TYPES:
        raise ValueError(f"no kernel reads blocks of type {type!r}; there are for {', '.join(sorted(TYPES))}")
    return importlib.import_module(f".{type.lower()}", __package__)


def table_of(type: str, device: torch.device) -> torch.Tensor | None:
    """What kernels get as `table`."""
    return codebook.on_device(type, device) if hasattr(load_type(type), "table") else None


def raw_constants(type: str) -> dict[str, Any]:
    """The constexprs by which a kernel reads such blocks."""
    module = load_type(type)
    return {"BYTES": module.BYTES, "VALUES": module.VALUES, "DECODE": module.decode}
