"""Gated: a network down · (SiLU(gate x) * up x), a dense layer's or the shared experts'. K columns, F hidden values."""

import torch

from .arranged import Arranged
from .device import Device
from .matrix import Matrix
from .products import linear, linear_twin
from .silu import silu_multiply, silu_multiply_twin

ARRANGED_TOKENS = 4  # up to here products read float32, which SiLU stores in their order; above, half precision


def check_networks(gate: Matrix, up: Matrix, down: Matrix) -> None:
    shapes = [(w.count, w.rows, w.columns) for w in (gate, up, down)]
    count, hidden, columns = shapes[0]
    if shapes != [(count, hidden, columns), (count, hidden, columns), (count, columns, hidden)]:
        raise ValueError(
            f"gate, up and down are (count, rows, columns) {shapes}; up must be like gate, down its transpose"
        )


class Gated:
    """gate and up [F, K], down [K, F]."""

    __slots__ = ("columns", "down", "gate", "hidden", "up")

    def __init__(self, gate: Matrix, up: Matrix, down: Matrix):
        check_networks(gate, up, down)
        if gate.count != 1:
            raise ValueError(f"gate has {gate.count} matrices; a network is one of each, a stack of them is Resident")
        self.gate, self.up, self.down = gate, up, down
        self.columns, self.hidden = gate.columns, gate.rows

    @property
    def nbytes(self) -> int:
        return self.gate.nbytes + self.up.nbytes + self.down.nbytes


def ffn(device: Device, gated: Gated, x: torch.Tensor | Arranged, residual: torch.Tensor | None = None) -> torch.Tensor:
    """down(SiLU(gate x) * up x) for x[T, K] -> [T, K], plus residual[T, K]."""
    both = linear(device, (gated.gate, gated.up), x)
    arranged = len(both) <= ARRANGED_TOKENS and gated.down.format is not None
    y = linear(device, gated.down, silu_multiply(device, both, arranged))
    return y if residual is None else y.add_(residual)


def ffn_twin(
    device: Device, gated: Gated, x: torch.Tensor | Arranged, residual: torch.Tensor | None = None
) -> torch.Tensor:
    both = linear_twin(device, (gated.gate, gated.up), x)
    y = linear_twin(device, gated.down, silu_multiply_twin(device, both))
    return y if residual is None else y + residual
