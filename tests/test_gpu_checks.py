"""The doctor's checks of a GPU, with twins in the place of its kernels."""

import io
import json
from typing import Any

import pytest

import gpu_kernels
from gpu_kernels import twins
from hetero import doctor_kernels
from hetero.gpu_checks import Bench, gpu_checks
from hetero.kernel_checks import WrongNumbers
from hetero.system import Finding

CHECKS = [name for name in gpu_checks() if name != "GPU device"]


class Wrong:
    """Results are off by a hundredth; of a router, by one expert."""

    def __getattr__(self, name: str) -> Any:
        verb = getattr(twins, name)

        def off(*given: Any, **options: Any) -> Any:
            found = verb(*given, **options)
            if name == "route":
                return found[0] + 1, found[1]
            return found if found is None or name == "cache_layer" else found * 1.01

        return off


def plain(verbs: Any = twins) -> Any:
    return lambda: Bench(gpu_kernels.Device.plain(), verbs)


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_right_passes(name: str) -> None:
    found = gpu_checks(plain())[name]()
    assert "without flags" in found if name == "GPU meeting" else "within" in found


@pytest.mark.parametrize("name", [name for name in CHECKS if name != "GPU meeting"])
def test_what_is_wrong_is_found(name: str) -> None:
    with pytest.raises(WrongNumbers):
        gpu_checks(plain(Wrong()))[name]()


@pytest.mark.parametrize("there", [False, True])
def test_only_where_there_is_a_gpu(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetero.gpu_machine.DEVICE_FILES", ("/dev/null" if there else "/dev/no such file",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(doctor_kernels, "run_check", lambda name, check: Finding(name, "ok", ""))
    out = io.StringIO()
    doctor_kernels.run_checks([], out)
    names = json.loads(out.getvalue().splitlines()[0])["checks"]
    assert "experts" in names and ("GPU device" in names) == there


def test_a_gpu_that_cannot_be_used_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> Any:
        raise gpu_kernels.GpuError("torch is built without CUDA", "a GPU needs a CUDA build", "install it")

    monkeypatch.setattr(gpu_kernels.Device, "cuda", refused)
    every = gpu_checks()
    for name, status in (("GPU device", "warning"), ("GPU heads", "broken")):
        found = doctor_kernels.run_check(name, every[name])
        assert (found.status, found.remedy) == (status, "install it") and "without CUDA" in found.found
