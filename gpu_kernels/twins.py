"""The verbs of this package in plain torch, on any device: `twins.rms_norm` is `rms_norm_twin` of the kernel's module.

Fallback where no kernel can run, oracle in the tests, baseline in the benchmark. A twin takes a `Device` like its
kernel and asks it only for `empty` and `torch_device`. Classes (Matrix, Device ...) are the same on both sides, and so
is what launches nothing.
"""

from importlib import import_module

from . import _HOME

_LAUNCH_NOTHING = {"cache_layer"}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f".{_HOME[name]}", __package__)
    twin = getattr(home, f"{name}_twin", None)
    if twin is not None:
        return twin
    verb = getattr(home, name)
    if isinstance(verb, type) or name in _LAUNCH_NOTHING:
        return verb
    raise AttributeError(f"{home.__name__} has no {name}_twin")
