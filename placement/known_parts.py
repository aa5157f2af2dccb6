"""Machines that nobody measured: well-known parts by their vendors' figures, and what kernels are expected to reach.

Memories and links carry nominal bandwidths, so a ceiling is what the parts allow. Rates of kernels are the nominal
figures times the efficiencies below, each named; a probe of the machine replaces them all.
"""

import re
from dataclasses import dataclass
from typing import TypeVar

from placement.document import Document
from placement.errors import InvalidDocument
from placement.machine import CPU, DISK, GPU, AttentionRate, LinearRate, Link, Machine, Memory, Processor, VerbRate
from placement.quantization import BLOCKS

T = TypeVar("T")

SYSTEM = 4 << 30  # of DRAM: operating system, other processes
DISK_BYTES = 2 << 40
# Bytes/s of a disk that nobody measured: a PCIe 4 NVMe drive, whose vendors say 7 for large reads. Less comes through
# the page cache, where more drives add little (https://forum.level1techs.com/t/deepseek-deep-dive-r1-at-home/225826).
# With 5, 8.0 tok/s are expected of V3 at 2.5 bits on 200 GB of DRAM, where 9.1 are reported (placement.published)
DISK_BANDWIDTH = 5e9
PAGEABLE = 0.45  # bytes/s of a copy from pageable memory, over those from pinned memory
PCIE = 0.8  # of a link's bits that are payload of large copies: 26 of 31.5 GB/s and 51 of 63 are seen
PCIE_LATENCY = 10e-6  # seconds
# Bytes/s of a lane each way, after 128b/130b coding (https://pcisig.com/specifications)
LANE = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9}
# Reading: of nominal bandwidth that all cores together reach (reads of 2 sockets of DDR5-4800: 500 of 614 GB/s), and of
# that, what products with one column do (benchmarks/results/kernels.json: 0.85 to 0.99)
DRAM_READ, ONE_COLUMN = 0.82, 0.92
VRAM_READ = 0.85
# FLOP/s of one core at 16 columns and more: benchmarks/results/kernels.json (Zen 4, 2 cores: 470 to 620 GFLOP/s); the
# study on Zen 3 in AVX2 (197). With all cores of a socket at work the clock is lower.
CORE_FLOPS = {"avx512": 280e9, "avx2": 170e9}
ALL_CORES = 0.7
FEW_COLUMNS = {1: 0.4, 2: 0.55, 4: 0.8, 8: 0.9}  # of that rate
# Of one core, float32: docs/mla.md (AVX-512: absorbed 70 to 78, expanded 92 to 98 GFLOP/s)
CORE_ATTENTION = {"avx512": (60e9, 74e9, 95e9), "avx2": (30e9, 37e9, 47e9)}  # decode, absorbed, expanded
# Of a GPU's dense bf16 rate: quantized products, then attention as above (FlashMLA reaches 0.67 of it on an H800 where
# arithmetic binds, https://github.com/deepseek-ai/FlashMLA)
GPU_PRODUCTS, GPU_ATTENTION = 0.4, (0.25, 0.35, 0.45)
CPU_CALL, GPU_CALL = 3e-6, 3e-6  # seconds of a dispatch
COLUMNS = (1, 2, 4, 8, 16, 64, 512)


@dataclass(frozen=True)
class Gpu:
    """`bf16`: dense FLOP/s with float32 accumulation; `bytes` as the driver reports them."""

    name: str
    bytes: int
    bandwidth: float
    bf16: float
    multiprocessors: int
    pcie: int  # generation, 16 lanes


@dataclass(frozen=True)
class Socket:
    """Memory channels and their transfers a second, 8 bytes each; cores of a common model."""

    name: str
    channels: int
    megatransfers: int
    cores: int
    isa: str
    pcie: int

    @property
    def bandwidth(self) -> float:
        return self.channels * self.megatransfers * 8e6


GPUS = {
    # https://www.nvidia.com/en-us/geforce/graphics-cards/30-series/rtx-3090-3090ti/ and the GA102 white paper
    "rtx-3090": Gpu("NVIDIA GeForce RTX 3090", 24576 << 20, 936e9, 71e12, 82, 4),
    # https://www.nvidia.com/en-us/geforce/graphics-cards/40-series/rtx-4090/ and the Ada white paper
    "rtx-4090": Gpu("NVIDIA GeForce RTX 4090", 24564 << 20, 1008e9, 165e12, 128, 4),
    # https://www.nvidia.cn/geforce/graphics-cards/40-series/rtx-4090-d/
    "rtx-4090d": Gpu("NVIDIA GeForce RTX 4090 D", 24564 << 20, 1008e9, 147e12, 114, 4),
    # https://www.nvidia.com/en-us/geforce/graphics-cards/50-series/rtx-5090/ and the RTX Blackwell white paper
    "rtx-5090": Gpu("NVIDIA GeForce RTX 5090", 32607 << 20, 1792e9, 209e12, 170, 5),
    # https://www.nvidia.com/en-us/design-visualization/rtx-a6000/
    "a6000": Gpu("NVIDIA RTX A6000", 49140 << 20, 768e9, 155e12, 84, 4),
    # https://www.nvidia.com/en-us/data-center/h200/
    "h200": Gpu("NVIDIA H200", 143771 << 20, 4800e9, 989e12, 132, 5),
}
SOCKETS = {
    # https://www.amd.com/en/products/processors/server/epyc/7002-series.html: 8 channels of DDR4-3200
    "epyc-rome": Socket("AMD EPYC 7002", 8, 3200, 32, "avx2", 4),
    # https://www.amd.com/en/products/processors/server/epyc/7003-series.html
    "epyc-milan": Socket("AMD EPYC 7003", 8, 3200, 32, "avx2", 4),
    # https://www.amd.com/en/products/processors/server/epyc/4th-generation-9004-and-8004-series.html: 12 of DDR5-4800
    "epyc-genoa": Socket("AMD EPYC 9004", 12, 4800, 32, "avx512", 5),
    # https://www.amd.com/en/products/processors/server/epyc/9005-series.html: 12 of DDR5-6000
    "epyc-turin": Socket("AMD EPYC 9005", 12, 6000, 32, "avx512", 5),
    # https://www.intel.com/content/www/us/en/products/details/processors/xeon/scalable.html: 8 of DDR4-3200
    "xeon-icelake": Socket("Intel Xeon, 3rd generation", 8, 3200, 32, "avx512", 4),
    # the same page: 8 of DDR5-4800; a Gold 6454S has 32 cores
    "xeon-sapphire-rapids": Socket("Intel Xeon, 4th generation", 8, 4800, 32, "avx512", 5),
    # the same page: 8 of DDR5-5600
    "xeon-emerald-rapids": Socket("Intel Xeon, 5th generation", 8, 5600, 32, "avx512", 5),
}


@dataclass(frozen=True)
class Description(Document):
    """A machine in a few words. Without a socket, `memory_bandwidth` and `cores` are needed."""

    memory: int  # bytes of DRAM, all sockets together
    memory_bandwidth: float | None = None  # bytes/s, all sockets together; None: the socket's
    gpu: str | None = None  # of GPUS
    gpu_memory: int | None = None  # bytes; None: the GPU's
    pcie: str | None = None  # "4x16"; None: the older of GPU and socket
    socket: str | None = None  # of SOCKETS
    sockets: int = 1
    cores: int | None = None  # of all sockets together; None: the socket's
    disk_bandwidth: float = DISK_BANDWIDTH


def describe(machine: Description) -> Machine:
    """The machine of these parts. Raises InvalidDocument for parts that are not known, or not enough said."""
    socket = _known(machine.socket, SOCKETS, "socket") if machine.socket else None
    gpu = _known(machine.gpu, GPUS, "GPU") if machine.gpu else None
    _refuse_nothing(machine)
    bandwidth = machine.memory_bandwidth
    if bandwidth is None:
        if socket is None:
            remedy = f"say --memory-bandwidth, or --socket and one of {', '.join(SOCKETS)}"
            raise InvalidDocument("memory of no known bandwidth", "it decides how fast a model runs", remedy)
        bandwidth = socket.bandwidth * machine.sockets
    cores = machine.cores
    if cores is None:  # else about what a core of today needs to stay busy
        cores = socket.cores * machine.sockets if socket else max(1, round(bandwidth / 12e9))
    nodes = tuple(
        Memory(f"node{i}", "dram", (machine.memory - SYSTEM) // machine.sockets, bandwidth / machine.sockets)
        for i in range(machine.sockets)
    )
    memories = (*nodes, Memory(DISK, "disk", DISK_BYTES, machine.disk_bandwidth))
    cpu = _cpu(socket.name if socket else "CPU", cores, bandwidth, socket.isa if socket else "avx512")
    name = f"{machine.sockets} x {cpu.description}, {cores} core{'s' * (cores != 1)}, {machine.memory / 2**30:.0f} GiB"
    name += f" at {bandwidth / 1e9:.0f} GB/s"
    notes: tuple[str, ...] = ("described, not measured: rates of kernels are expectations",)
    if gpu is None:
        return Machine(name, False, memories, (), (cpu,), notes)
    vram = Memory(GPU, "vram", gpu.bytes if machine.gpu_memory is None else machine.gpu_memory, gpu.bandwidth)
    if vram.bytes > gpu.bytes:
        notes += (f"an {gpu.name} is sold with {_gib(gpu.bytes)}, not with {_gib(vram.bytes)}",)
    link = _link(machine.pcie or f"{min(gpu.pcie, socket.pcie if socket else gpu.pcie)}x16")
    return Machine(f"{name}, {gpu.name}", False, (vram, *memories), (link,), (cpu, gpu_processor(gpu)), notes)


def _refuse_nothing(machine: Description) -> None:
    """A machine without memory, cores, or anything that moves."""
    if machine.memory <= SYSTEM:
        limit = f"the system and other processes take {_gib(SYSTEM)} of it"
        raise InvalidDocument(f"memory of {_gib(machine.memory)}", limit, "raise --memory")
    for name in ("sockets", "cores", "memory_bandwidth", "disk_bandwidth"):
        if getattr(machine, name) == 0:
            raise InvalidDocument(f"{name} = 0", "more than 0", f"raise --{name.replace('_', '-')}, or leave it out")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _known(name: str, parts: dict[str, T], what: str) -> T:
    key = re.sub(r"[\s_]+", "-", name.strip().lower())
    if key not in parts:
        raise InvalidDocument(f"no {what} {name!r:.60} is known", f"known are {', '.join(parts)}", "take the nearest")
    return parts[key]


def _link(text: str) -> Link:
    """ "4x16": generation and lanes."""
    match = re.fullmatch(r"(\d+)(?:\.0)?\s*x\s*(\d+)", text.strip().lower())
    if match is None or int(match[1]) not in LANE or int(match[2]) not in (1, 2, 4, 8, 16):
        raise InvalidDocument(f"pcie {text!r:.40}", "generation 3, 4 or 5 and lanes up to 16", "write 4x16")
    speed = PCIE * LANE[int(match[1])] * int(match[2])
    return Link(GPU, speed, PAGEABLE * speed, speed, PAGEABLE * speed, PCIE_LATENCY)


def _rates(read: float, flops: dict[int, float], call: float) -> tuple[LinearRate, ...]:
    """Of every type: whichever takes longer, reading the weights or multiplying them."""
    found = []
    for type, (values, size) in BLOCKS.items():
        points = tuple((c, min(flops[c], 2.0 * c * read * values / size)) for c in COLUMNS)
        found.append(LinearRate("linear", type, size / values, call, points))
    return tuple(found)


def _cpu(description: str, cores: int, bandwidth: float, isa: str) -> Processor:
    speed = CORE_FLOPS[isa] * cores * ALL_CORES
    flops = {c: speed * FEW_COLUMNS.get(c, 1.0) for c in COLUMNS}
    linear = _rates(bandwidth * DRAM_READ * ONE_COLUMN, flops, CPU_CALL)
    attention = tuple(
        AttentionRate(kv, CPU_CALL, *(rate * cores * ALL_CORES for rate in CORE_ATTENTION[isa]))
        for kv in ("f16", "f32", "q8_0")
    )
    value = 1e-9 / cores
    verbs = [VerbRate(verb, CPU_CALL, value) for verb in ("rms_norm", "rope", "write_cache", "route", "embed")]
    verbs += [VerbRate("dequantize", CPU_CALL, value), VerbRate("pass", 200e-6, 0.0)]
    return Processor(CPU, description, cores, linear, attention, tuple(verbs))


def gpu_processor(gpu: Gpu, read: float = VRAM_READ) -> Processor:
    """`read`: of its bandwidth that reading reaches."""
    linear = _rates(gpu.bandwidth * read, dict.fromkeys(COLUMNS, gpu.bf16 * GPU_PRODUCTS), GPU_CALL)
    attention = tuple(
        AttentionRate(kv, GPU_CALL, *(share * gpu.bf16 for share in GPU_ATTENTION)) for kv in ("f16", "f32", "q8_0")
    )
    value = 8 / (gpu.bandwidth * read)  # seconds: 4 bytes read, 4 written
    verbs = [VerbRate(verb, GPU_CALL, value) for verb in ("rms_norm", "rope", "write_cache", "route", "dequantize")]
    return Processor(GPU, gpu.name, gpu.multiprocessors, linear, attention, tuple(verbs))
