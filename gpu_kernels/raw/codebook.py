"""Codebooks of the IQ types, from the gguf package's tables: int8, flat, one copy on each device."""

from functools import cache

import gguf
import numpy as np
import torch


def entries(type: str) -> np.ndarray:
    """The 8 (IQ3: 4) values of every entry, one entry after the other."""
    quant = getattr(gguf.quants, type)
    quant.init_grid()
    return quant.grid.astype(np.int8).reshape(-1)


@cache
def on_device(type: str, device: torch.device) -> torch.Tensor:
    """Made at the first use, which must not be in a graph's capture: `load` runs every kernel once before that."""
    from . import load_type

    return torch.from_numpy(load_type(type).table()).to(device)
