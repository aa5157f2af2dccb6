"""Launches, memory operations and capture on a real GPU; what the stand-in for libcuda cannot show."""

import ctypes
import threading

import numpy as np
import pytest
import torch

from gpu_kernels import GpuError
from gpu_kernels.device import Device
from gpu_kernels.driver import Driver, wait_at_least, write
from tests.axpy import axpy, axpy_twin

pytestmark = pytest.mark.gpu
PAGE = 4096


@pytest.fixture(scope="module")
def device() -> Device:
    try:
        return Device.cuda()
    except GpuError as error:
        pytest.skip(str(error))


@pytest.fixture
def driver(device: Device) -> Driver:
    assert device.driver is not None
    return device.driver


def random(device: Device, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(device.torch_device)


@pytest.mark.parametrize(("bias", "skipped", "negate", "far"), [(False, 0, False, 3), (True, 5, True, (1 << 33) + 1)])
def test_every_kind_of_argument(device: Device, bias: bool, skipped: int, negate: bool, far: int) -> None:
    x, y, b = random(device, 3, 100_001)
    expected, addend = y.clone(), b if bias else None
    axpy(device, 0.1, x.half(), y, addend, skipped=skipped, negate=negate, far=far)
    axpy_twin(0.1, x.half(), expected, addend, skipped, negate, far)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


def test_inline_assembly(device: Device) -> None:
    x, y = random(device, 2, 5000)
    expected = y + 6.0 * x
    axpy(device, 3.0, x, y, TWICE=True)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


def test_host_memory(device: Device, driver: Driver) -> None:
    pinned = torch.zeros(1000).pin_memory()
    axpy(device, 2.0, torch.ones(1000).pin_memory(), pinned)
    memory = np.zeros(2 * PAGE, np.uint8)
    start = -memory.ctypes.data % PAGE
    registered = torch.from_numpy(memory[start : start + PAGE].view(np.float32))
    driver.register(registered.data_ptr(), PAGE)
    axpy(device, 3.0, torch.ones(1024, device="cuda"), registered)
    torch.cuda.synchronize()
    driver.unregister(registered.data_ptr())
    assert (pinned == 2.0).all() and (registered == 3.0).all()
    with pytest.raises(GpuError, match=r"is it pinned or registered\?"):
        axpy(device, 1.0, torch.ones(1000), pinned)


def test_a_captured_launch_and_a_captured_wait(device: Device, driver: Driver) -> None:
    x, y = torch.ones((2, 1000), device="cuda")
    flag = torch.zeros(32, dtype=torch.int32).pin_memory()
    address = driver.device_address(flag.data_ptr())
    axpy(device, 1.0, x, y)  # loaded before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        driver.operate(device.stream(), [wait_at_least(address, 1), write(address, 0)])
        axpy(device, 1.0, x, y)
        with pytest.raises(GpuError, match="would be loaded while a CUDA graph is captured"):
            axpy(device, 1.0, x, y, BLOCK=2048)
    for turn in range(3):
        graph.replay()
        done = torch.cuda.Event()
        done.record()
        assert not done.query(), "the graph waits for the flag"
        flag[0] = 1
        done.synchronize()
        assert flag[0] == 0 and (y == 3.0 + turn).all()


def test_a_host_function(device: Device, driver: Driver) -> None:
    seen = []
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(seen.append)
    driver.host_function(device.stream(), ctypes.cast(function, ctypes.c_void_p).value or 0, 0x1234)
    torch.cuda.synchronize()
    assert seen == [0x1234]
    assert driver.idle(device.stream())


def test_a_thread_that_never_used_the_gpu(device: Device) -> None:
    x, y = torch.ones((2, 1000), device="cuda")
    thread = threading.Thread(target=axpy, args=(device, 1.0, x, y))
    thread.start()
    thread.join()
    assert (y == 2.0).all()
