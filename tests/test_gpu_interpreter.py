"""Kernels in Triton's interpreter, through `Device.launch`."""

import pytest
import torch

from gpu_kernels.device import Device
from tests.axpy import axpy, axpy_kernel, axpy_twin

pytestmark = pytest.mark.interpreter


@pytest.fixture(scope="module")
def device() -> Device:
    return Device.interpreter()


@pytest.mark.parametrize(("bias", "skipped", "negate", "far"), [(False, 0, False, 3), (True, 5, True, (1 << 33) + 1)])
def test_every_kind_of_argument(device: Device, bias: bool, skipped: int, negate: bool, far: int) -> None:
    generator = torch.Generator().manual_seed(7)
    x, y, b = torch.randn((3, 1500), generator=generator)
    guarded = torch.cat([y, torch.full((64,), 7.0)])  # beyond the mask
    expected = y.clone()
    addend = b if bias else None
    axpy(device, 0.1, x.half(), guarded[:1500], addend, skipped=skipped, negate=negate, far=far)
    axpy_twin(0.1, x.half(), expected, addend, skipped, negate, far)
    torch.testing.assert_close(guarded[:1500], expected, rtol=0, atol=0)
    assert (guarded[1500:] == 7.0).all()


def test_inline_assembly_has_its_way_around(device: Device) -> None:
    y = torch.zeros(8)
    axpy(device, 3.0, torch.ones(8), y, TWICE=True)
    assert (y == 6.0).all()


def test_what_cuda_would_refuse(device: Device) -> None:
    x = torch.ones(8)
    with pytest.raises(ValueError, match=r"grid \(1, 70000\); 1 to 2147483647, 65535, 65535"):
        device.launch(axpy_kernel, (1, 70000), x, x, None, 8, 8, 0, 1.0, False, BLOCK=8)
    with pytest.raises(TypeError, match="axpy_kernel: 2 arguments for the parameters x, y, bias, count"):
        device.launch(axpy_kernel, (1,), x, x, BLOCK=8)
    with pytest.raises(TypeError, match="axpy_kernel has no constexpr BLOKC"):
        device.launch(axpy_kernel, (1,), x, x, None, 8, 8, 0, 1.0, False, BLOKC=8)
    with pytest.raises(TypeError, match="axpy_kernel lacks a value of BLOCK"):
        device.launch(axpy_kernel, (1,), x, x, None, 8, 8, 0, 1.0, False)
    with pytest.raises(ValueError, match=f"count of axpy_kernel: {1 << 63} does not fit int64"):
        device.launch(axpy_kernel, (1,), x, x, None, 1 << 63, 8, 0, 1.0, False, BLOCK=8)
    with pytest.raises(TypeError, match=r"x of axpy_kernel: no kernel reads torch\.complex64"):
        device.launch(axpy_kernel, (1,), x.to(torch.complex64), x, None, 8, 8, 0, 1.0, False, BLOCK=8)
    with pytest.raises(TypeError, match="count of axpy_kernel: int64; a tensor, int, float, bool or None"):
        device.launch(axpy_kernel, (1,), x, x, None, torch.tensor(8).numpy()[()], 8, 0, 1.0, False, BLOCK=8)
    with pytest.raises(ValueError, match="x of axpy_kernel lies on meta"):
        device.launch(axpy_kernel, (1,), x.to("meta"), x, None, 8, 8, 0, 1.0, False, BLOCK=8)
