"""The settings nearest to some that do not fit."""

from collections.abc import Callable
from dataclasses import replace

from placement.cost import PAGE
from placement.model import Model, Tensor
from placement.plan import Settings

Fits = Callable[[Model, Settings], bool]

Q8_0_VALUES = 32  # of a block; a cache of this type holds whole ones (cpu_kernels.cache.BLOCK)

# Bits per weight of DeepSeek-V3's files as quantized by llama.cpp, largest first (placement.presets computes them)
QUANTIZATIONS = (
    ("q8_0", 8.5),
    ("q6_k", 6.57),
    ("q5_k_m", 5.67),
    ("q4_k_m", 4.82),
    ("q4_k_s", 4.53),
    ("q3_k_m", 3.8),
    ("q2_k", 2.92),
    ("ud-q2_k_xl", 2.7),
    ("iq1_s", 1.6),
)


def alternatives(model: Model, settings: Settings, fits: Fits) -> str:
    """One line: what to change, each alone, so that it fits; "" where nothing of it would help."""
    remedies = []
    context = longest_context(model, settings, fits)
    if context:
        remedies.append(f"lower --context to {context:,} or less".replace(",", ""))
    blocks = model.dimensions.cache_width % Q8_0_VALUES == 0
    if blocks and settings.kv != "q8_0" and fits(model, replace(settings, kv="q8_0")):
        remedies.append("use --kv q8_0")
    if settings.mmap is False and fits(model, replace(settings, mmap=None)):
        remedies.append("leave out --no-mmap: experts are then read from the disk")
    smaller = largest_quantization(model, settings, fits)
    if smaller is not None:
        remedies.append(f"take the model quantized to {smaller[1]:g} bits a weight or less, as {smaller[0]} is")
    if settings.device == "cuda" and fits(model, replace(settings, device="cpu")):
        remedies.append("use --device cpu")
    return ", or ".join(remedies)


def longest_context(model: Model, settings: Settings, fits: Fits) -> int:
    """In whole pages of the cache; 0: none fits."""
    assert settings.context is not None, "settings are resolved first"
    low, high = 0, -(-settings.context // PAGE)  # pages that fit, pages that do not
    if not fits(model, replace(settings, context=1)):
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        if fits(model, replace(settings, context=middle * PAGE)):
            low = middle
        else:
            high = middle
    return low * PAGE


def largest_quantization(model: Model, settings: Settings, fits: Fits) -> tuple[str, float] | None:
    """Name and bits per weight of the largest quantization, smaller than the model's, with which it would fit."""
    bits = 8 * model.nbytes / max(sum(tensor.weights for tensor in model.tensors), 1)
    smaller = [(name, size) for name, size in QUANTIZATIONS if size < bits]
    return next((one for one in smaller if fits(_scaled(model, one[1] / bits), settings)), None)


def _scaled(model: Model, ratio: float) -> Model:
    """With so much smaller tensors, whole experts of the same size each."""
    experts = model.dimensions.experts
    tensors = [Tensor(t.name, t.type, t.shape, int(t.nbytes * ratio) // experts * experts) for t in model.tensors]
    return replace(model, tensors=tuple(tensors))
