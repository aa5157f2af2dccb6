"""Rows of raw blocks times one token's activations, in float32, where the weights lie: no matrix is written out."""

from ..jit import jit, tl


@jit
def raw_rows(
    data, table, x, row, K: tl.constexpr,
    BYTES: tl.constexpr, VALUES: tl.constexpr, DECODE: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """x[K] · rows `row` int64 [ROWS], counted over the whole stack -> float32 [ROWS]; TILE blocks of a row a step."""
    BLOCKS: tl.constexpr = K // VALUES
    tile = tl.arange(0, TILE)[None, :, None]
    c = tl.arange(0, VALUES)[None, None, :]
    start = row[:, None, None] * BLOCKS
    sums = tl.zeros((ROWS, TILE, VALUES), tl.float32)
    for first in range(0, BLOCKS, TILE):
        at = first + tile
        value = tl.load(x + at * VALUES + c, mask=at < BLOCKS, other=0.0)
        weight = DECODE(data + (start + tl.minimum(at, BLOCKS - 1)) * BYTES, table, c)
        sums += tl.where(at < BLOCKS, weight, 0.0) * value
    return tl.sum(tl.sum(sums, 2), 1)
