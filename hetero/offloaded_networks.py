"""Networks of the GPU's layers that are the CPU's, or of which it has routed experts: `submit`, later `collect`."""

from typing import Any

from hetero.gpu_side import GpuSide
from hetero.moe import DenseFFN, MoE, Router
from hetero.offload import Meeting
from hetero.side import Array


class OffloadedFFN(DenseFFN):
    """A dense network, all of it the CPU's: what the meeting computes."""

    def __init__(self, meeting: Meeting):
        self.meeting = meeting

    def submit(self, x: Array) -> None:
        self.meeting.submit(x, None, None)

    def collect(self) -> Array:
        """[T, hidden]"""
        return self.meeting.collect()

    def drop(self) -> None:
        self.meeting.drop()

    def __call__(self, x: Array) -> Array:
        self.submit(x)
        return self.collect()


class SplitMoE(MoE):
    """Routed experts on both sides, or all of them on the CPU; `meeting` computes those, and knows which they are.

    `routed`: the GPU's experts, None without any; `shared`: the shared one's weights if it is the GPU's.
    """

    def __init__(self, router: Router, routed: Any, shared: Any, side: GpuSide, meeting: Meeting):
        super().__init__(router, routed, shared, side)
        self.meeting, self._here = meeting, None

    def submit(self, x: Array) -> None:
        self.chosen, weights = self.router(x)
        self.meeting.submit(x, self.chosen, weights)
        self._here = self._experts(self.routed, x, self.chosen, weights, self.shared)

    def collect(self) -> Array:
        """[T, hidden]"""
        here, self._here = self._here, None
        return self.meeting.collect(add=here)

    def drop(self) -> None:
        self._here = None
        self.meeting.drop()

    def __call__(self, x: Array) -> Array:
        self.submit(x)
        return self.collect()
