"""libggml-base and libggml-cpu of the installed llama-cpp-python, their functions declared for ctypes."""

import ctypes
from ctypes import CDLL, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


_P, _I = c_void_p, c_int64
_BASE = {
    "ggml_init": (_P, InitParams),
    "ggml_free": (None, _P),
    "ggml_new_tensor_2d": (_P, _P, c_int, _I, _I),
    "ggml_new_tensor_3d": (_P, _P, c_int, _I, _I, _I),
    "ggml_new_graph": (_P, _P),
    "ggml_build_forward_expand": (None, _P, _P),
    "ggml_mul_mat": (_P, _P, _P, _P),
    "ggml_mul_mat_id": (_P, _P, _P, _P, _P),
    "ggml_swiglu_split": (_P, _P, _P, _P),
    "ggml_mul": (_P, _P, _P, _P),
    "ggml_add": (_P, _P, _P, _P),
    "ggml_view_2d": (_P, _P, _P, _I, _I, c_size_t, c_size_t),
    "ggml_set_input": (None, _P),
    "ggml_set_output": (None, _P),
    "ggml_get_data": (_P, _P),
    "ggml_nbytes": (c_size_t, _P),
    "ggml_log_set": (None, _P, _P),
    "ggml_threadpool_params_init": (None, _P, c_int),
    "ggml_gallocr_new": (_P, _P),
    "ggml_gallocr_free": (None, _P),
    "ggml_gallocr_alloc_graph": (c_bool, _P, _P),
    "ggml_backend_free": (None, _P),
    "ggml_backend_graph_compute": (c_int, _P, _P),
    "ggml_backend_cpu_buffer_type": (_P,),
    "ggml_backend_cpu_buffer_from_ptr": (_P, _P, c_size_t),
    "ggml_backend_buft_alloc_buffer": (_P, _P, c_size_t),
    "ggml_backend_buft_get_alloc_size": (c_size_t, _P, _P),
    "ggml_backend_buffer_get_base": (_P, _P),
    "ggml_backend_buffer_free": (None, _P),
    "ggml_backend_tensor_alloc": (c_int, _P, _P, _P),
    "ggml_backend_tensor_set": (None, _P, _P, c_size_t, c_size_t),
    "ggml_backend_dev_supports_op": (c_bool, _P, _P),
    "ggml_backend_reg_dev_get": (_P, _P, c_size_t),
    "ggml_backend_reg_get_proc_address": (_P, _P, c_char_p),
}
_CPU = {
    "ggml_backend_cpu_init": (_P,),
    "ggml_backend_cpu_reg": (_P,),
    "ggml_backend_cpu_set_n_threads": (None, _P, c_int),
    "ggml_backend_cpu_set_threadpool": (None, _P, _P),
    "ggml_threadpool_new": (_P, _P),
    "ggml_threadpool_free": (None, _P),
    "ggml_threadpool_pause": (None, _P),
}


@ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
def _silent(level: int, text: bytes, user: int) -> None:
    """Takes ggml's log. A module-level name: ctypes would free it with its last reference."""


def _declare(library: CDLL, functions: dict[str, tuple]) -> CDLL:
    for name, (result, *arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@cache
def libraries() -> tuple[CDLL, CDLL]:
    """(libggml-base, libggml-cpu), without importing the package."""
    package = find_spec("llama_cpp")
    if package is None or package.origin is None:
        raise SystemExit("llama-cpp-python is not installed: pip install 'hetero[llama]'")
    folder = Path(package.origin).parent / "lib"
    base, cpu = (CDLL(str(named(folder, f"libggml-{part}.so"))) for part in ("base", "cpu"))
    _declare(base, _BASE).ggml_log_set(ctypes.cast(_silent, c_void_p), None)
    return base, _declare(cpu, _CPU)


def named(folder: Path, name: str) -> Path:
    """The library under the name by which others ask for it, `name`.0.

    A wheel holds a copy for each of its names, no links. By the plain one a process that runs llama.cpp, too, would get
    a second ggml, half of which is bound to the first.
    """
    return next(iter(sorted(folder.glob(f"{name}.[0-9]"))), folder / name)
