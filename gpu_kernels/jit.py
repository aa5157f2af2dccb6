"""The one module that names Triton: how every GPU kernel is declared.

Kernels import `jit` and `tl` from here. Where Triton is not installed (the CPU builds of torch come without it) kernels
are declared all the same and never run: the twins and the weights' layout need no Triton, and `Device.cuda` and
`Device.interpreter` say what to install.
"""

from collections.abc import Collection
from importlib import import_module
from typing import Any

try:
    triton: Any = import_module("triton")
except ImportError:
    triton = None


class _Absent:
    """Stands for `triton.language` where a declaration names it without Triton: annotations, defaults, constants."""

    def __init__(self, value: object = None):
        self.value = value

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent

    def __bool__(self) -> bool:
        return bool(self.value)


def _undecorated(function=None, **options):
    return function if function is not None else lambda kernel: kernel


VERSION: str | None = triton and triton.__version__
tl: Any = _Absent() if triton is None else triton.language  # kernels' modules must hold it under this name
jit: Any = _undecorated if triton is None else triton.jit  # a kernel, or a device function that kernels call
constexpr_function: Any = _undecorated if triton is None else triton.constexpr_function  # Python over constexprs

# TRITON_INTERPRET was set when this module was imported: kernels run in Python on CPU tensors. A constexpr, so that a
# kernel may branch on it: the interpreter knows neither inline assembly nor arithmetic in bfloat16.
INTERPRETED = tl.constexpr(triton is not None and bool(triton.knobs.runtime.interpret))


def cdiv(count: int, size: int) -> int:
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


def next_power_of_2(count: int) -> int:
    """The smallest power of two >= count: what tl.arange wants."""
    return 1 << max(0, count - 1).bit_length()


def compile_kernel(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    divisible: Collection[str],
    capability: int,
    warps: int,
    stages: int,
) -> Any:
    """Compile for a GPU that need not be there -> Triton's CompiledKernel: `.asm["ptx"]`, `.asm["cubin"]`, `.metadata`.

    `types`: of the parameters that are passed ("*fp32", "i32", ...); `constants`: values of all others; `divisible`:
    names of the parameters, addresses or ints, that divide by 16. Triton's driver and launcher stay out of it: they
    would want a C compiler and the headers of CUDA and Python on the user's machine.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
