"""The GPU's part of a load: the device, room for its cache, its weights, and the model that both sides compute."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from hetero.errors import UnsupportedError
from hetero.gpu_machine import other_gpus
from hetero.gpu_side import GpuSide
from hetero.gpu_weights import Fold, Source, VramReader
from hetero.graph import CudaCapture
from hetero.places import Places
from hetero.sizes import format_size

if TYPE_CHECKING:
    from cpu_kernels import Pool
    from hetero.config import ModelConfig
    from hetero.gguf import GGUFFile, Tensor
    from hetero.hybrid import HybridModel

Progress = Callable[[str, int, int], None]


def open_side() -> GpuSide:
    """The first GPU. UnsupportedError where there is none that can be used."""
    import gpu_kernels

    try:
        return GpuSide(gpu_kernels.Device.cuda(), gpu_kernels)
    except gpu_kernels.GpuError as error:
        raise UnsupportedError(error.found, error.limit, error.remedy or "use --device cpu") from None


class GpuLoad:
    """`graph` False: passes are launched anew each time."""

    def __init__(self, places: Places, graph: bool):
        self.places, self.graph = places, graph
        self.side = open_side()

    @property
    def cache(self) -> "tuple[int, GpuSide]":
        """How many layers' cache is the GPU's, and the GPU."""
        return self.places.attention, self.side

    def bind(
        self,
        file: "GGUFFile",
        tensors: "Mapping[str, Tensor]",
        config: "ModelConfig",
        pool: "Pool",
        progress: Progress,
        fold: Fold | None = None,
    ) -> "HybridModel":
        """`tensors`: as they lie in the file; those of `file` are the CPU's by now. `fold`: as PatternFile's."""
        from hetero.gpu_placing import Placing
        from hetero.offload import Doorbells

        source = Source(file, tensors, fold)
        reader = VramReader(source, pool, self.side, self.places.nbytes, progress)
        doorbells = Doorbells(self.side.device, pool)
        capture = CudaCapture() if self.graph and self.side.pinned else None
        return Placing(file, config, pool, self.places, reader, doorbells).model(capture)

    def report(self, planned_bytes: int, say: Callable[[str], None]) -> None:
        """What weights and cache take, beside what they were to take."""
        used = self.side.allocated()
        if used:
            say(f"{format_size(used)} of weights and cache on the GPU, {format_size(planned_bytes)} planned")
        if others := other_gpus() if self.side.pinned else 0:
            say(f"one GPU is used, and {others} more are not: CUDA_VISIBLE_DEVICES chooses which")
