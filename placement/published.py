"""Speeds that others published for machines of which a plan is made, to be shown beside what is predicted.

Other engines, other prompts, figures as their authors gave them: a scale, not a test.
"""

from dataclasses import dataclass

from placement.document import Document
from placement.known_parts import GPUS, SYSTEM
from placement.machine import Machine
from placement.presets import UnknownPreset, canonical

NEAR = 0.25  # of the memory's size, by which a machine may differ and still be much the same


@dataclass(frozen=True)
class Published(Document):
    """Tokens per second of one sequence. `memory`: bytes of DRAM. `when`: "2025-02-15", or "" where it is not known."""

    model: str  # of a preset, "deepseek-v3:q4_k_m"
    gpu: str  # of GPUS; one of them
    sockets: int
    memory: int
    processors: str
    engine: str
    decode: float
    prefill: float | None
    prompt_tokens: int | None
    source: str
    when: str

    def __str__(self) -> str:
        speeds = f"{self.decode:.3g} tok/s decode"
        if self.prefill is not None:
            speeds += f", {self.prefill:.3g} tok/s prefill"
            speeds += f" of {self.prompt_tokens} tokens" if self.prompt_tokens is not None else ""
        where = f"{self.processors}, {self.memory / 1e9:.0f} GB"
        source = ", ".join(filter(None, (self.when, self.source.removeprefix("https://"))))
        return f"published: {speeds} ({self.engine}; {where}; {source})"


_V3, _V3_SMALL = "deepseek-v3:q4_k_m", "deepseek-v3:ud-q2_k_xl"
_TUTORIAL = "https://github.com/kvcache-ai/ktransformers/blob/main/doc/en/DeepseekR1_V3_tutorial.md"
_ISSUES = "https://github.com/kvcache-ai/ktransformers/issues/"
_GUIDE = "https://github.com/ubergarm/r1-ktransformers-guide"
_SAPPHIRE, _TWO = "Xeon Gold 6454S, DDR5-4800", "2 x Xeon Gold 6454S, DDR5-4800"
_RYZEN, _THREADRIPPER = "Ryzen 9 7950X, DDR5-5400", "Threadripper PRO 7965WX, 225 GB/s"
_GB, _GIB = 10**9, 1 << 30

# All of them with all 8 experts of a token
PUBLISHED = (
    Published(_V3, "rtx-4090d", 2, 1024 * _GIB, _TWO, "KTransformers 0.2", 12.208, 82.94, 500, _TUTORIAL, "2025-02-10"),
    Published(
        _V3, "rtx-4090d", 1, 512 * _GIB, _SAPPHIRE, "KTransformers 0.2", 8.73, 54.21, 500, _TUTORIAL, "2025-02-10"
    ),
    Published(_V3, "rtx-4090", 2, 1024 * _GIB, _TWO, "KTransformers 0.2.1", 13.5, 88.2, 969, _TUTORIAL, "2025-02-15"),
    Published(
        *(_V3, "rtx-4090", 1, 768 * _GIB, "EPYC 9654, 12 x DDR5-4800", "KTransformers"),
        *(14.0, None, None, _ISSUES + "314", "2025-02-15"),
    ),
    Published(
        *(
            _V3_SMALL,
            "rtx-4090",
            1,
            192 * _GIB,
            "EPYC 9274F, 6 x DDR5-4800",
            "KTransformers 0.2, some of it on the disk",
        ),
        *(9.0, None, None, _ISSUES + "587", "2025-02-21"),
    ),
    Published(
        *(_V3_SMALL, "rtx-4090", 1, 576 * _GIB, "EPYC 9274F, 12 x DDR5-4800", "KTransformers 0.2.1"),
        *(16.5, None, None, _ISSUES + "587", "2025-02-21"),
    ),
    Published(
        *(_V3_SMALL, "rtx-4090", 1, 192 * _GIB, _RYZEN, "KTransformers, some of it on the disk"),
        *(6.0, None, None, _ISSUES + "424", "2025-02-21"),
    ),
    Published(
        _V3_SMALL, "a6000", 1, 256 * _GIB, _THREADRIPPER, "KTransformers 0.2.1", 14.8, 69.1, None, _GUIDE, "2025-02"
    ),
    Published(
        _V3_SMALL, "a6000", 1, 256 * _GIB, _THREADRIPPER, "llama.cpp 51f311e0", 7.39, 12.0, None, _GUIDE, "2025-02"
    ),
    Published(
        *(_V3_SMALL, "rtx-3090", 2, 256 * _GIB, "Xeon E5-2630 v4, DDR4-2666", "KTransformers 0.2.1"),
        *(2.86, 4.28, 14, _ISSUES + "726", "2025-03-04"),
    ),
    # As it is handed on; where it was published first was not found
    Published(
        *(_V3_SMALL, "rtx-3090", 1, 200 * _GB, "processor not known", "engine not known"),
        *(9.1, None, None, "original source not found", ""),
    ),
)


def published(model: str, machine: Machine) -> tuple[Published, ...]:
    """Of this preset on much the same machine: its GPU, about its memory. The nearest in sockets and memory first."""
    try:
        name = ":".join(canonical(model))
    except UnknownPreset:
        return ()
    gpu, memory = machine.gpu, machine.dram_bytes + SYSTEM
    found = [
        one for one in PUBLISHED if one.model == name and gpu is not None and GPUS[one.gpu].name == gpu.description
    ]
    near = [one for one in found if abs(one.memory - memory) <= NEAR * one.memory]
    return tuple(sorted(near, key=lambda one: (abs(one.sockets - len(machine.nodes)), abs(one.memory - memory))))
