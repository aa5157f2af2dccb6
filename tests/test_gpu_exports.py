"""The names that gpu_kernels exports: each has its home, no module hides one, every verb has a twin."""

from importlib import import_module
from pathlib import Path

import pytest

import gpu_kernels
from gpu_kernels import twins

MODULES = {path.stem for path in Path(gpu_kernels.__file__).parent.rglob("*.py")}
HOMES = {name: home for name, home in gpu_kernels._HOME.items() if home in MODULES}


def test_the_table_is_whole() -> None:
    assert set(gpu_kernels.__all__) == {*gpu_kernels._HOME, "GpuError"}
    assert not MODULES & set(gpu_kernels.__all__)


@pytest.mark.parametrize("name", HOMES)
def test_every_name_has_its_home_and_its_twin(name: str) -> None:
    verb = getattr(gpu_kernels, name)
    assert verb is getattr(import_module(f"gpu_kernels.{HOMES[name]}"), name)
    twin = getattr(twins, name)
    assert (twin is verb) == (isinstance(verb, type) or name in twins._LAUNCH_NOTHING)


def test_unknown_names() -> None:
    for module in (gpu_kernels, twins):
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'relu'"):
            _ = module.relu
