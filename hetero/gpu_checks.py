"""Every family of GPU kernels on this very GPU, compared with its twin in plain torch: what `hetero doctor` runs where
there is a GPU. A check compiles what it launches, and what fails to compile fails that check alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

GPU_DEVICE = "GPU device"
BOUND = 5e-3  # of the norm: activations are float16 where there are more than four tokens
LATENT, ROPE, NOPE, HEADS = 512, 64, 128, 16
PRODUCTS = ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q5_0", "Q4_0", "IQ4_XS", "F16", "BF16")
TOKENS = (1, 4, 16, 200)  # of a matrix-vector product, of two sizes of tiles, of dequantized weights


class Bench:
    """A device, its verbs, and random data there."""

    def __init__(self, device: Any, verbs: Any):
        self.device, self.verbs, self.rng = device, verbs, np.random.default_rng(0)

    @classmethod
    def here(cls) -> "Bench":
        """On the first GPU. GpuError says what keeps it from being used."""
        import gpu_kernels

        return cls(gpu_kernels.Device.cuda(), gpu_kernels)

    def normal(self, *shape: int) -> Any:
        import torch

        return torch.from_numpy(self.rng.standard_normal(shape, np.float32)).to(self.device.torch_device)

    def matrix(self, type: str, *shape: int) -> Any:
        from cpu_kernels import Pool
        from gpu_kernels import Matrix
        from hetero.random_weights import random_rows

        *outer, columns = shape
        with Pool(1) as pool:
            rows = random_rows(pool, self.rng, type, (int(np.prod(outer)), columns), columns**-0.5)
        return Matrix.from_gguf(self.device, rows.reshape(*outer, -1), type, columns)

    def compare(self, what: str, verb: str, *given: Any, **options: Any) -> float:
        """Of the verb's result and its twin's."""
        from gpu_kernels import twins
        from hetero.kernel_checks import WrongNumbers

        found = getattr(self.verbs, verb)(self.device, *given, **options)
        expected = getattr(twins, verb)(self.device, *given, **options)
        error = float((found - expected).norm() / expected.norm())
        if not error <= BOUND:  # also where it is nan
            raise WrongNumbers(f"{what} is off by {error:.2g}; {BOUND:.2g} is the bound")
        return error


def _worst(errors: list[float]) -> str:
    return f"within {max(errors):.1g} of plain torch"


def check_device() -> str:
    import torch

    bench = Bench.here()
    device, found = bench.device, torch.cuda.get_device_properties(0)
    cuda = device.driver.version()
    return (
        f"{found.name}, compute capability {device.capability // 10}.{device.capability % 10}, "
        f"{found.total_memory / 2**30:.0f} GiB; driver for CUDA {cuda // 1000}.{cuda % 1000 // 10}, "
        f"torch {torch.__version__}"
    )


def check_products(bench: Callable[[], Bench], type: str) -> str:
    at = bench()
    w = at.matrix(type, 300, 768)
    return _worst([at.compare(f"{tokens} columns", "linear", w, at.normal(tokens, 768)) for tokens in TOKENS])


def check_heads(bench: Callable[[], Bench]) -> str:
    at, errors = bench(), []
    w = at.matrix("Q8_0", HEADS, NOPE, LATENT)
    for tokens in (1, 8, 40):
        errors.append(at.compare(f"{tokens} tokens", "linear_heads", w, at.normal(tokens, HEADS, LATENT)))
        errors.append(at.compare("transposed", "linear_heads_transposed", w, at.normal(tokens, HEADS, NOPE)))
    return _worst(errors)


def check_experts(bench: Callable[[], Bench]) -> str:
    import torch

    from gpu_kernels import Resident

    at, errors = bench(), []
    shapes = ("Q4_K", 4, 256, 512), ("Q4_K", 4, 256, 512), ("Q6_K", 4, 512, 256)
    resident = Resident(*(at.matrix(*shape) for shape in shapes), range(0, 8, 2), 8)
    for tokens in (1, 8, 40):
        ids = torch.stack([torch.randperm(8)[:3] for _ in range(tokens)]).int().to(at.device.torch_device)
        given = resident, at.normal(tokens, 512), ids, at.normal(tokens, 3).abs()
        errors.append(at.compare(f"{tokens} tokens", "routed_experts", *given))
    return _worst(errors)


def check_small(bench: Callable[[], Bench]) -> str:
    """Norm and router; rope and the cache are those of attention."""
    from gpu_kernels import twins
    from hetero.kernel_checks import V3, WrongNumbers

    at = bench()
    error = at.compare("rms_norm", "rms_norm", at.normal(5, 1536), at.normal(1536), 1e-6)
    logits, bias = at.normal(50, 256), at.normal(256) / 5
    rule: dict[str, Any] = {**V3, "normalize": True, "scale": 2.5}
    ids, _ = at.verbs.route(at.device, logits, bias, **rule)
    others, _ = twins.route(at.device, logits, bias, **rule)
    if wrong := int((ids != others).sum()):
        raise WrongNumbers(f"{wrong} of {ids.numel()} chosen experts are others")
    return _worst([error])


def check_attention(bench: Callable[[], Bench], kv: str) -> str:
    """A cache is written and read: 300 tokens, absorbed and expanded."""
    import torch

    at, place = bench(), bench().device.torch_device
    layer, table = at.verbs.cache_layer(at.device, 5, kv, LATENT + ROPE), torch.arange(5, dtype=torch.int32).to(place)
    both, norm, angles = at.normal(300, LATENT + ROPE), at.normal(LATENT), at.normal(300, ROPE // 2)
    slots = torch.arange(300).to(place)
    at.verbs.write_latent(at.device, both, 0, norm, 1e-6, angles.cos(), angles.sin(), layer, slots)
    positions = torch.tensor([0, 64, 299], dtype=torch.int32).to(place)
    rows = at.normal(3, HEADS, LATENT) / 8, at.normal(3, HEADS, ROPE) / 8
    errors = [at.compare("absorbed", "mla_absorbed", *rows, layer, table[None], positions * 0, positions, 0.1)]
    k_b, v_b = at.matrix("Q8_0", HEADS, LATENT, NOPE), at.matrix("Q8_0", HEADS, NOPE, LATENT)
    given = at.normal(40, HEADS, NOPE + ROPE) / 8, k_b, v_b, layer, table, torch.arange(260, 300).int().to(place), 0.1
    errors.append(at.compare("expanded", "mla_expanded", *given, k_transposed=True))
    return _worst(errors)


def check_meeting(bench: Callable[[], Bench]) -> str:
    """How the GPU waits for the CPU here."""
    from contextlib import closing

    import torch

    from cpu_kernels import Matrix, Pool, linear
    from hetero.kernel_checks import WrongNumbers
    from hetero.offload import Doorbells

    at = bench()
    with Pool() as pool:
        w = Matrix(at.rng.standard_normal((64, 64), np.float32).view(np.uint8), "F32", 64)
        bells = Doorbells(at.device, pool, patience=20.0)
        with closing(bells):
            meeting = bells.meeting(partial(_product, pool, w), 64)
            bells.open()
            x, answers = at.normal(1, 64), list[Any]()

            def launch() -> None:
                meeting.submit(x)
                answers.append(meeting.collect())

            bells.run(1, launch)
            expected = linear(pool, w, x.cpu().numpy())
            if not torch.allclose(answers[0].cpu(), torch.from_numpy(expected)):
                raise WrongNumbers("the CPU's answer is not what the GPU got")
            return str(bells)


def _product(pool: Any, w: Any, x: Any, ids: Any, weights: Any, out: Any) -> None:
    from cpu_kernels import linear

    linear(pool, w, x, out=out)


def gpu_checks(bench: Callable[[], Bench] = Bench.here) -> dict[str, Callable[[], str]]:
    found: dict[str, Callable[[], str]] = {GPU_DEVICE: check_device, "GPU meeting": partial(check_meeting, bench)}
    found |= {f"GPU {type}": partial(check_products, bench, type) for type in PRODUCTS}
    found |= {"GPU heads": partial(check_heads, bench), "GPU experts": partial(check_experts, bench)}
    found["GPU router"] = partial(check_small, bench)
    return found | {f"GPU attention {kv}": partial(check_attention, bench, kv) for kv in ("f16", "q8_0")}
