"""Codes to planes and back, in plain torch. R rows, S sub-blocks, B blocks of 256. Codes: uint8 [R, S, 32], by column.

Everything is done on bytes: int32 words are views of them. GPUs and the CPUs that run this are little-endian.
"""

import torch


def as_words(raw: torch.Tensor) -> torch.Tensor:
    """uint8 [..., 4 n] -> int32 [..., n], the same bytes."""
    return raw.contiguous().view(torch.int32)


def as_bytes(words: torch.Tensor) -> torch.Tensor:
    """[..., n] -> uint8 [..., n x bytes of an element]."""
    return words.contiguous().view(torch.uint8)


def as_float16(raw: torch.Tensor) -> torch.Tensor:
    """uint8 [..., 2 n] -> float16 [..., n], the same bytes."""
    return raw.contiguous().view(torch.float16)


def split_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [..., n] -> [..., 2, n]: low nibbles, high nibbles."""
    return torch.stack((packed & 15, packed >> 4), dim=-2)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Codes below 16 -> int32 [R, 1, S, 4]: position p of lane i in nibble p of word i."""
    rows, blocks, _ = codes.shape
    pairs = codes.view(rows, blocks, 4, 2, 4)  # byte, nibble, lane
    packed = pairs[:, :, :, 0] | pairs[:, :, :, 1] << 4
    return as_words(packed.transpose(2, 3)).view(rows, 1, blocks, 4)


def unpack_nibbles(words: torch.Tensor) -> torch.Tensor:
    rows, _, blocks, _ = words.shape
    packed = as_bytes(words).view(rows, blocks, 4, 4).transpose(2, 3)  # byte, lane
    return split_nibbles(packed).reshape(rows, blocks, 32)


def pack_bytes(codes: torch.Tensor) -> torch.Tensor:
    """Codes of 8 bits -> int32 [R, 2, S, 4]: position p of lane i in byte p % 4 of word i of group p // 4."""
    rows, blocks, _ = codes.shape
    return as_words(codes.view(rows, blocks, 2, 4, 4).permute(0, 2, 1, 4, 3)).view(rows, 2, blocks, 4)


def unpack_bytes(words: torch.Tensor) -> torch.Tensor:
    rows, _, blocks, _ = words.shape
    return as_bytes(words).view(rows, 2, blocks, 4, 4).permute(0, 2, 1, 4, 3).reshape(rows, blocks, 32)


def pack_fifth_bits(bits: torch.Tensor) -> torch.Tensor:
    """Bits (uint8 0 or 1, [R, S, 32]) -> int32 [R, S]: that of position p, lane i at 8 (p // 2) + 2 i + p % 2."""
    rows, blocks, _ = bits.shape
    by_place = bits.view(rows, blocks, 4, 2, 4).transpose(3, 4).reshape(rows, blocks, 4, 8)
    packed = by_place[..., 0].clone()
    for place in range(1, 8):
        packed |= by_place[..., place] << place
    return as_words(packed).view(rows, blocks)


def unpack_fifth_bits(words: torch.Tensor) -> torch.Tensor:
    rows, blocks = words.shape
    places = torch.arange(8, dtype=torch.uint8, device=words.device)
    bits = (as_bytes(words).view(rows, blocks, 4, 1) >> places) & 1
    return bits.view(rows, blocks, 4, 4, 2).transpose(3, 4).reshape(rows, blocks, 32)


def pack_upper_pairs(pairs: torch.Tensor) -> torch.Tensor:
    """Pairs of bits (uint8 0 .. 3, [R, S, 32]) -> int32 [R, S, 2]: that of position p, lane i in word i // 2 at
    8 (p // 2) + 4 (i % 2) + 2 (p % 2)."""
    rows, blocks, _ = pairs.shape
    by_place = pairs.view(rows, blocks, 4, 2, 2, 2).permute(0, 1, 4, 2, 5, 3).reshape(rows, blocks, 2, 4, 4)
    packed = by_place[..., 0].clone()
    for place in range(1, 4):
        packed |= by_place[..., place] << 2 * place
    return as_words(packed).view(rows, blocks, 2)


def unpack_upper_pairs(words: torch.Tensor) -> torch.Tensor:
    rows, blocks, _ = words.shape
    places = torch.arange(0, 8, 2, dtype=torch.uint8, device=words.device)
    pairs = (as_bytes(words).view(rows, blocks, 2, 4, 1) >> places) & 3
    return pairs.view(rows, blocks, 2, 4, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(rows, blocks, 32)


def pack_values(values: torch.Tensor, bytes_each: int) -> torch.Tensor:
    """Weights of 2 or 4 bytes (uint8 [R, columns x bytes]) -> int32 [R, groups, S, 4]: a group has 2 positions or 1."""
    rows = values.shape[0]
    together = 4 // bytes_each
    groups = 8 // together
    shape = rows, -1, groups, together, 4, bytes_each  # sub-block, group, position, lane
    return as_words(values.view(shape).permute(0, 2, 1, 4, 3, 5).reshape(rows, groups, -1, 16))


def unpack_values(words: torch.Tensor, bytes_each: int) -> torch.Tensor:
    rows, groups, blocks, _ = words.shape
    shape = rows, groups, blocks, 4, 4 // bytes_each, bytes_each
    return as_bytes(words).view(shape).permute(0, 2, 1, 4, 3, 5).reshape(rows, -1)
