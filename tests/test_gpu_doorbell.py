"""The doorbell's kernels as the GPU gets them: order and kind of the stores and loads, and of the driver's calls."""

import ctypes
import re

import pytest
import torch

from gpu_kernels import doorbell
from gpu_kernels.device import Device
from gpu_kernels.doorbell import Line, ring_kernel, take_kernel, wait_kernel
from gpu_kernels.driver import CALLS, Driver, Operation
from tests.fake_cuda import FakeCuda
from tests.gpu_compile import CAPABILITIES, Binary, Case, compiled, compiled_by_other

_POINTERS = {
    name: "*i32" if name in ("ids", "local", "to_ids", "number", "token", "request") else "*fp32"
    for name in ("x", "ids", "weights", "local", "to_x", "to_ids", "to_weights", "number", "token", "request")
}
_COUNTS = {"values": "i32", "pairs": "i32", "experts": "i32"}
_ALIGNED = (*_POINTERS, "values")
_WAIT = {"done": "*i32", "abort": "*i32", "failed": "*i32", "polls": "i32"}
_TAKE = {"answer": "*fp32", "add": "*fp32", "y": "*fp32", "count": "i32"}
RELEASE, ACQUIRE = r"ST\.E\.STRONG\.SYS|STG\.E\.STRONG\.SYS", r"LDG?\.E\.STRONG\.SYS"

CASES = [
    Case(
        "ring 7168, 1 token", ring_kernel, _POINTERS | _COUNTS, {"PAIRS": 8, "BLOCK": 8192}, warps=16,
        divisible=_ALIGNED, registers=64, contains={r"STG\.E\.128": 4, r"MEMBAR": 1, RELEASE: 1}, lacks=("ATOM", "RED"),
    ),
    Case(
        "ring 7168, 8 tokens", ring_kernel, _POINTERS | _COUNTS, {"PAIRS": 64, "BLOCK": 16384}, warps=32,
        divisible=_ALIGNED, registers=64, contains={r"STG\.E\.128": 4, r"MEMBAR": 1, RELEASE: 1}, lacks=("ATOM", "RED"),
    ),
    Case(
        "ring of x alone", ring_kernel,
        {n: t for n, t in _POINTERS.items() if n in ("x", "to_x", "number", "token", "request")} | _COUNTS,
        {"PAIRS": 0, "BLOCK": 2048}, warps=4, divisible=("x", "to_x", "number", "token", "request", "values"),
        registers=64, contains={r"STG\.E\.128": 4, r"MEMBAR": 1, RELEASE: 1}, lacks=("ATOM", "RED"),
    ),
    Case(
        "wait", wait_kernel, _WAIT, warps=1, registers=32,
        contains={ACQUIRE: 1, "CCTL": 1, "NANOSLEEP": 1, RELEASE: 1}, lacks=("ATOM", "RED"),
    ),
    Case(
        "take", take_kernel, _TAKE, {"BLOCK": 1024}, divisible=(*_TAKE,), registers=32,
        contains={r"LDG\.E\.128\.STRONG\.SYS": 2},
    ),
    Case(
        "take and add nothing", take_kernel, {n: t for n, t in _TAKE.items() if n != "add"}, {"BLOCK": 1024},
        divisible=("answer", "y", "count"), registers=32, contains={r"LDG\.E\.128\.STRONG\.SYS": 2},
    ),
]  # fmt: skip


def instructions(binary: Binary) -> list[str]:
    return [line for line in binary.sass.splitlines() if re.search(r"/\*[0-9a-f]{4,}\*/", line)]


def only(lines: list[str], pattern: str) -> int:
    """Where the one instruction is that matches."""
    found = [at for at, line in enumerate(lines) if re.search(pattern, line)]
    assert len(found) == 1, [lines[at] for at in found]
    return found[0]


def assert_request_last(lines: list[str]) -> None:
    """payload, barrier of the whole block, fence of the whole system, and then the flag, by one thread."""
    flag, fence = only(lines, RELEASE), only(lines, r"MEMBAR.*\.SYS")
    stores = [at for at, line in enumerate(lines) if re.search(r"\bSTG?\.E", line) and at != flag]
    barrier = max(at for at, line in enumerate(lines) if re.search(r"BAR\.SYNC", line))
    assert max(stores) < barrier < fence < flag
    assert any(re.search(r"@!?P\d (EXIT|BRA)", line) for line in lines[barrier:flag]) or "@" in lines[flag]


@pytest.mark.parametrize("capability", [89, 90])
@pytest.mark.parametrize("case", CASES[:3], ids=[case.name for case in CASES[:3]])
def test_the_request_is_the_last_store(case, capability):
    assert_request_last(instructions(compiled(case, capability)))


@pytest.mark.soak
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_request_is_the_last_store_everywhere(capability):
    others = compiled_by_other(__name__, CAPABILITIES)
    for case in CASES[:3]:
        assert_request_last(instructions(compiled(case, capability)))
        assert_request_last(instructions(others[case.name, capability]))


@pytest.mark.parametrize("capability", [89, 90])
def test_one_thread_waits(capability):
    ptx = compiled(CASES[3], capability).ptx
    assert len(re.findall(r"@first ld\.acquire\.sys\.global\.u32", ptx)) == 2
    assert len(re.findall(r"@first st\.release\.sys\.global\.u32", ptx)) == 1


@pytest.fixture
def gpu():
    """A device whose driver writes down what it is asked for."""
    library = FakeCuda()
    device = Device(torch.device("cpu"), capability=89, driver=Driver(library), stream=lambda: 7)
    return library, device


def line(tokens=8, columns=64, used=2, rows=64) -> Line:
    def words() -> torch.Tensor:
        return torch.zeros(1, dtype=torch.int32)

    ids = torch.zeros((tokens, used), dtype=torch.int32)
    arrays = torch.zeros((tokens, columns)), ids, torch.zeros((tokens, used)), torch.zeros((tokens, rows))
    return Line(*arrays, *(words() for _ in range(6)))


def test_the_driver_is_asked_to_ring_to_wait_and_to_take_back(gpu):
    library, device = gpu
    seen = []

    def operate(stream, count, block, flags):
        seen.append((stream, flags, (Operation * count).from_buffer_copy(ctypes.string_at(block, 48 * count))))
        library.calls.append(("cuStreamBatchMemOp_v2", stream))
        return 0

    library.cuStreamBatchMemOp_v2 = ctypes.CFUNCTYPE(ctypes.c_int, *CALLS["cuStreamBatchMemOp_v2"])(operate)
    meeting = line()
    doorbell.ring(device, meeting, torch.ones(2, 64), torch.ones((2, 2), dtype=torch.int32), torch.ones(2, 2))
    doorbell.wait_by_memory_operation(device, meeting)
    doorbell.take(device, meeting, 2)
    order = [call[0] for call in library.calls if call[0] in ("cuLaunchKernel", "cuStreamBatchMemOp_v2")]
    assert order == ["cuLaunchKernel", "cuStreamBatchMemOp_v2", "cuLaunchKernel"]
    stream, flags, (wait, write) = seen[0]
    address = meeting.done.data_ptr() + FakeCuda.ALIAS
    assert (stream, flags) == (7, 0)
    assert (wait.operation, wait.address, wait.value, wait.flags) == (1, address, 1, 0)  # >= 1
    assert (write.operation, write.address, write.value, write.flags) == (2, address, 0, 0)
    grids = [call[2:8] for call in library.calls if call[0] == "cuLaunchKernel"]
    assert grids[0][:3] == (1, 1, 1), "one program rings: no other can be late"


def test_a_host_function_is_given_its_notice(gpu):
    library, device = gpu
    doorbell.wait_by_host_function(device, 0x5000, 0x6000)
    assert library.called("cuLaunchHostFunc") == [[7, 0x5000, 0x6000]]


def test_a_polling_wait_is_one_warp_and_has_an_end(gpu):
    library, device = gpu
    polls = []
    library.on_launch = lambda parameters: polls.append(
        ctypes.c_int32.from_address(ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))[3]).value
    )
    doorbell.wait_by_polling(device, line(), 60.0)
    doorbell.wait_by_polling(device, line(), 1e9)
    (grid,) = {tuple(call[2:8]) for call in library.calls if call[0] == "cuLaunchKernel"}
    assert grid == (1, 1, 1, 32, 1, 1)
    assert polls == [120_000_000, 2**31 - 1]


X, IDS, WEIGHTS = torch.ones(2, 64), torch.zeros((2, 2), dtype=torch.int32), torch.ones(2, 2)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ((X[:, :32], IDS, WEIGHTS), r"x is torch.float32 \[2, 32\] .* needed is contiguous torch.float32 \[2, 64\]"),
        ((X.double(), IDS, WEIGHTS), "x is torch.float64"),
        ((torch.ones(64, 2).T, IDS, WEIGHTS), r"x is torch.float32 \[2, 64\] with strides \(1, 2\)"),
        ((X, IDS.long(), WEIGHTS), "ids is torch.int64"),
        ((X, IDS, WEIGHTS[:1]), r"weights is torch.float32 \[1, 2\]"),
        ((X, None, None), "ids are missing: this meeting takes 2 experts a token"),
        ((torch.ones(9, 64), torch.zeros((9, 2), dtype=torch.int32), torch.ones(9, 2)), "9 tokens; 1 to 8 can be sent"),
    ],
)
def test_payloads_that_do_not_fit_are_refused(payload, message):
    for ring in (doorbell.ring, doorbell.ring_twin):
        with pytest.raises(ValueError, match=message):
            ring(Device.plain(), line(), *payload)


def test_other_payloads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="ids or weights for a meeting without experts"):
        doorbell.ring_twin(Device.plain(), line(used=0), X, IDS, WEIGHTS)
    for take in (doorbell.take, doorbell.take_twin):
        with pytest.raises(ValueError, match=r"add is torch.float32 \[3, 64\]; needed is contiguous .*\[2, 64\]"):
            take(Device.plain(), line(), 2, torch.ones(3, 64))
