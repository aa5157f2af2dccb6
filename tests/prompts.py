"""Token ids to run: random, the first one BOS."""

import numpy as np


def prompt(count: int, seed: int = 0, vocab: int = 512) -> tuple[int, ...]:
    ids = np.random.default_rng(seed).integers(5, vocab, size=count)  # 0 to 4 are special tokens
    return (0, *ids[1:].tolist())
