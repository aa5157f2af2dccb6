"""Fields of quantized blocks: for device functions by address, for twins by column of uint8 [n, BYTES]."""

import torch

from ..jit import jit, tl


@jit
def byte(at):
    return tl.load(at).to(tl.int32)


@jit
def pair(at):
    """Two bytes, the lower first; `at` need not be even."""
    return byte(at) | (byte(at + 1) << 8)


@jit
def half(at):
    """A float16 number, as float32."""
    return pair(at).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@jit
def negated(value, bit):
    """value where `bit` is 0, -value where it is 1."""
    return tl.where(bit != 0, -value, value)


@jit
def even(sevens):
    """Seven bits -> eight, of which an even number is set."""
    odd = sevens ^ (sevens >> 4)
    odd ^= odd >> 2
    odd ^= odd >> 1
    return sevens | ((odd & 1) << 7)


@jit
def seven_signs(word, g):
    """Of the four bytes at `word` the seven bits from 7 g on, g = 0..3, and their parity."""
    return even((pair(word + 7 * g // 8) >> (7 * g % 8)) & 127)


def bytes_of(blocks: torch.Tensor, at: torch.Tensor | int) -> torch.Tensor:
    """int32 [n, len(at)], or [n, 1] of a single one."""
    return blocks[:, at if isinstance(at, torch.Tensor) else slice(at, at + 1)].int()


def pairs_of(blocks: torch.Tensor, at: torch.Tensor | int) -> torch.Tensor:
    return bytes_of(blocks, at) | bytes_of(blocks, at + 1) << 8


def halves_of(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """float32 [n, 1]"""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def even_of(sevens: torch.Tensor) -> torch.Tensor:
    odd = sum((sevens >> bit) & 1 for bit in range(7)) & 1
    return sevens | odd << 7


def seven_signs_of(blocks: torch.Tensor, word: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return even_of(pairs_of(blocks, word + 7 * g // 8) >> (7 * g % 8) & 127)


def columns(blocks: torch.Tensor, values: int) -> torch.Tensor:
    return torch.arange(values, device=blocks.device)
