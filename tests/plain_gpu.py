"""A GPU that is not there: its place in a plan, and plain torch in the place of its kernels."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gpu_kernels
from gpu_kernels import twins
from gpu_kernels.formats.format import Planes
from gpu_kernels.matrix import Matrix
from hetero import gpu_machine
from hetero.config import ModelConfig
from hetero.gguf import open_gguf
from hetero.gpu_side import GpuSide
from hetero.planning import plan_to_run
from hetero.run_config import RunConfig
from placement.machine import Machine
from placement.model import Part, Tensor

GIB = 1 << 30
CARD = SimpleNamespace(name="NVIDIA GeForce RTX 4090", multi_processor_count=128)
Chosen = Callable[[Part, int | None], bool]


def plain_side() -> GpuSide:
    return GpuSide(gpu_kernels.Device.plain(), twins)


def machine_with_gpu(machine: Machine) -> Machine:
    return gpu_machine._described(machine, CARD, 24 * GIB)


class DequantizedOnce:
    """`Matrix.dequantized` keeps what it has found, until another model is loaded: twins spend most of their time in
    it, and weights stay."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int, int | None], tuple[Planes, torch.Tensor]] = {}  # planes: so that they stay

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        dequantize = Matrix.dequantized

        def dequantized(w: Matrix, first: int = 0, last: int | None = None) -> torch.Tensor:
            key = w.planes.codes.data_ptr(), first, last
            if key not in self._found:
                self._found[key] = w.planes, dequantize(w, first, last)
            return self._found[key][1]

        patch.setattr(Matrix, "dequantized", dequantized)

    def open_side(self) -> GpuSide:
        self._found.clear()
        return plain_side()


def pretend(patch: pytest.MonkeyPatch) -> None:
    """From now on `hetero.load` finds a GPU."""
    weights = DequantizedOnce()
    weights.patch(patch)
    patch.setattr("hetero.planning.gpu_problem", lambda: None)
    patch.setattr("hetero.planning.with_gpu", machine_with_gpu)
    patch.setattr("hetero.gpu_loading.open_side", weights.open_side)


def placed(
    path: Path, target: Path, run: RunConfig, chosen: Chosen, experts: Mapping[int, tuple[int, ...]] | None = None
) -> str:
    """Writes a plan of `run` with what is `chosen`, by part and layer, on the GPU, and these experts of layers."""
    with open_gguf(path) as file:
        config = ModelConfig.from_gguf(file)
        planned = plan_to_run(file, config, run)
    document = planned.plan.to_json()
    document["settings"] |= {"device": "auto", "gpu_experts": None}
    model = planned.model
    moved = {t.name for part, tensors in model.by_part.items() for t in tensors if chosen(part, t.layer)}
    routed = {t.name: t for t in model.by_part["routed experts"]}
    tensors = list[dict[str, Any]]()
    for entry in document["tensors"]:
        there = experts.get(routed[entry["name"]].layer or 0) if experts and entry["name"] in routed else None
        if entry["name"] in moved:
            entry = entry | {"place": "gpu0"}
        tensors += _cut(entry, routed[entry["name"]], there, config.experts) if there else [entry]
    document["tensors"] = tensors
    target.write_text(json.dumps(document))
    return str(target)


def _cut(entry: dict[str, Any], tensor: Tensor, there: tuple[int, ...], count: int) -> list[dict[str, Any]]:
    size = tensor.nbytes // count * len(there)
    if size == tensor.nbytes:
        return [entry | {"place": "gpu0"}]
    on_gpu = entry | {"place": "gpu0", "bytes": size, "experts": list(there)}
    return [on_gpu, entry | {"bytes": tensor.nbytes - size}]
