"""Whether this machine has a GPU that can be used, and what the planner is told of one that nobody measured."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from hetero.errors import UnsupportedError
from placement.known_parts import GPUS, gpu_processor
from placement.machine import GPU, Link, Machine, Memory

DEVICE_FILES = ("/dev/nvidiactl", "/dev/dxg")  # of NVIDIA's driver, and of Windows' under WSL
REMEDY = "see hetero doctor, or use --device cpu"
UNKNOWN = "rtx-4090"  # whose figures stand in for a GPU of which none are known
PCIE = 20e9  # bytes/s of a link that was not measured: less than half of PCIe 5 x16, most of PCIe 4 x16
PCIE_PAGEABLE, PCIE_LATENCY = 0.4, 10e-6  # of its speed; seconds


def gpu_is_there() -> bool:
    """A driver's, whether it can be used or not, unless the user hides it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    return not hidden and any(Path(path).exists() for path in DEVICE_FILES)


def gpu_problem() -> UnsupportedError | None:
    """Why no GPU can be used; None: the first one can. Where there is no sign of one, torch is not even imported."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return UnsupportedError("CUDA_VISIBLE_DEVICES hides all GPUs", "one is needed", REMEDY)
    if not any(Path(path).exists() for path in DEVICE_FILES):
        found = f"no NVIDIA GPU: neither {' nor '.join(DEVICE_FILES)} is there"
        return UnsupportedError(found, "a GPU with its driver is needed", REMEDY)
    from gpu_kernels import Device, GpuError

    try:
        Device.cuda()
    except GpuError as error:
        return UnsupportedError(error.found, error.limit, error.remedy or REMEDY)
    return None


def with_gpu(machine: Machine) -> Machine:
    """With torch's first GPU, as much of its memory as is free: as measured, or as its kind is known to be."""
    import torch

    free, total = torch.cuda.mem_get_info(0)
    context = max(0, total - free - torch.cuda.memory_allocated(0))  # this process's own and those of others
    if machine.vram is None:
        machine = _described(machine, torch.cuda.get_device_properties(0), total)
    size = total if context < (1 << 30) else free  # a desktop or another process holds part of it
    memories = (replace(one, bytes=size) if one.kind == "vram" else one for one in machine.memories)
    return replace(machine, memories=tuple(memories))


def other_gpus() -> int:
    """How many besides the one that is used."""
    import torch

    return torch.cuda.device_count() - 1


def _described(machine: Machine, properties: Any, size: int) -> Machine:
    known = next((gpu for gpu in GPUS.values() if gpu.name == properties.name), None)
    gpu = replace(known or GPUS[UNKNOWN], name=properties.name, multiprocessors=properties.multi_processor_count)
    link = Link(GPU, PCIE, PCIE_PAGEABLE * PCIE, PCIE, PCIE_PAGEABLE * PCIE, PCIE_LATENCY)
    memories = (Memory(GPU, "vram", size, gpu.bandwidth), *machine.memories)
    notes = (*machine.notes, f"{gpu.name} was not measured: hetero plan --refresh does")
    processors = (*machine.processors, gpu_processor(gpu))
    return replace(
        machine,
        name=f"{machine.name}, {gpu.name}",
        memories=memories,
        links=(link,),
        processors=processors,
        notes=notes,
    )
