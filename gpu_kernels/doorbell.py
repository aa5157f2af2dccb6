"""The GPU's side of its meetings with the CPU's pool: ring (payload and request), wait for the answer, take it.

T tokens, k experts a token. The memory in between belongs to the host, registered with the driver; the layout and the
proof are in docs/offload.md. No read-modify-write there: over PCIe only aligned loads and stores are atomic.

Three ways to wait, which all leave DONE at 0: a memory operation of the stream, a kernel that polls, a host function.
"""

from dataclasses import dataclass

import torch

from .device import Device
from .driver import wait_at_least, write
from .jit import INTERPRETED, cdiv, jit, next_power_of_2, tl

MOST_BLOCK = 16384  # values that the ring's one program copies at a time: 16 floats in each of 1024 threads
TAKE_BLOCK = 1024
FEWEST_NS_A_POLL = 500  # a read over PCIe and back, at least


@dataclass(frozen=True)
class Line:
    """A meeting as the GPU sees it. Host memory: CPU tensors over registered memory. Words: int32 [1]."""

    x: torch.Tensor  # float32 [most tokens, columns]
    ids: torch.Tensor  # int32 [most tokens, k]; k = 0: x alone is sent
    weights: torch.Tensor  # float32 [most tokens, k]
    answer: torch.Tensor  # float32 [most tokens, rows]
    request: torch.Tensor  # receives the token's number
    done: torch.Tensor  # 1: the answer is there
    abort: torch.Tensor  # receives 1 where a wait gave up
    number: torch.Tensor  # the token's number: the host's word for the first meeting of a pass, `token` for the others
    token: torch.Tensor  # on the device; the ring of the first meeting fetches the number into it
    failed: torch.Tensor  # on the device: a wait gave up, so that those behind it do not wait
    local: torch.Tensor | None = None  # int32 [E] on the device: an expert's number on the CPU, -1 for none


@jit
def _release(flag, value):
    """One thread stores `value`; what its program stored before a barrier is visible to whoever sees it."""
    if INTERPRETED:
        tl.store(flag, value)
    else:
        tl.inline_asm_elementwise(
            "{ .reg .pred first; .reg .u32 me; mov.u32 me, %tid.x; setp.eq.u32 first, me, 0;"
            " @first st.release.sys.global.u32 [$1], $2; mov.u32 $0, $2; }",
            "=r,l,r",
            [flag, value],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@jit
def _acquire(flag):
    """The word at `flag` in one thread; 1 in the others, which so cannot see it at another time."""
    if INTERPRETED:
        value = tl.load(flag, volatile=True)
    else:
        value = tl.inline_asm_elementwise(
            "{ .reg .pred first; .reg .u32 me; mov.u32 me, %tid.x; setp.eq.u32 first, me, 0; mov.u32 $0, 1;"
            " @first ld.acquire.sys.global.u32 $0, [$1]; }",
            "=&r,l",
            [flag],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    return value


@jit
def _nap(nanoseconds):
    if not INTERPRETED:
        tl.inline_asm_elementwise(
            "nanosleep.u32 $1; mov.u32 $0, $1;", "=r,r", [nanoseconds], dtype=tl.int32, is_pure=False, pack=1
        )


@jit(do_not_specialize=["pairs", "experts"])
def ring_kernel(
    x, ids, weights, local, to_x, to_ids, to_weights, number, token, request, values, pairs, experts,
    PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program. values = T · columns, pairs = T · k; PAIRS: the power of two above, 0 where x alone is sent."""
    now = tl.load(number, volatile=True)  # small loads first: they are on their way while x is copied
    pair = tl.arange(0, max(PAIRS, 1))
    if PAIRS > 0:
        id = tl.load(ids + pair, mask=pair < pairs, other=-1)
        weight = tl.load(weights + pair, mask=pair < pairs)
    for first in range(0, values, BLOCK):
        at = first + tl.arange(0, BLOCK)
        tl.store(to_x + at, tl.load(x + at, mask=at < values), mask=at < values)
    if PAIRS > 0:
        if local is not None:  # a number beyond the table stays what it is: the CPU reports it
            id = tl.load(local + id, mask=(id >= 0) & (id < experts), other=id)
        tl.store(to_ids + pair, id, mask=pair < pairs)
        tl.store(to_weights + pair, weight, mask=pair < pairs)
    tl.store(token, now)
    tl.debug_barrier()  # all threads have stored their part of the payload
    _release(request, now)


@jit(do_not_specialize=["polls"])
def wait_kernel(done, abort, failed, polls):
    """One program of one warp, of which one thread polls. `polls`: at most so often; then abort."""
    left = tl.where(tl.load(failed) == 0, polls, 0)
    answered = _acquire(done)
    while (answered == 0) & (left > 0):
        _nap(64)
        left -= 1
        answered = _acquire(done)
    if answered == 0:
        tl.store(failed, 1)
        _release(abort, 1)
    tl.store(done, 0)


@jit
def take_kernel(answer, add, y, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(answer + at, mask=at < count, volatile=True)  # past the caches: the host has written it
    if add is not None:
        value += tl.load(add + at, mask=at < count)
    tl.store(y + at, value, mask=at < count)


def ring(
    device: Device,
    line: Line,
    x: torch.Tensor,
    ids: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> None:
    """Sends x [T, columns] float32, and ids [T, k] int32 and weights [T, k] float32 where the line has experts.

    ids are mapped by `line.local`. The CPU sees the request after the payload.
    """
    _check_fits(line, x, ids, weights)
    pairs = len(x) * line.ids.shape[1]
    block = min(MOST_BLOCK, next_power_of_2(x.numel()))
    device.launch(
        ring_kernel,
        (1,),
        *(x, ids, weights, line.local),
        *(line.x, line.ids if pairs else None, line.weights if pairs else None),
        *(line.number, line.token, line.request),
        *(x.numel(), pairs, 0 if line.local is None else len(line.local)),
        warps=max(1, min(32, block // 512)),
        PAIRS=next_power_of_2(pairs) if pairs else 0,
        BLOCK=block,
    )


def wait_by_polling(device: Device, line: Line, patience: float) -> None:
    """A kernel that polls. After `patience` seconds or somewhat more it raises `abort`, and no later wait waits."""
    polls = min(2**31 - 1, int(patience * 1e9 / FEWEST_NS_A_POLL))
    device.launch(wait_kernel, (1,), line.done, line.abort, line.failed, polls, warps=1)


def wait_by_memory_operation(device: Device, line: Line) -> None:
    """The stream itself waits, without a kernel and without an end: the host must see to that."""
    assert device.driver is not None, "memory operations need a GPU"
    address = device.driver.device_address(line.done.data_ptr())
    device.driver.operate(device.stream(), [wait_at_least(address, 1), write(address, 0)])


def wait_by_host_function(device: Device, function: int, notice: int) -> None:
    """The stream calls `function(notice)` on the host, which returns when the answer is there and has reset DONE."""
    assert device.driver is not None, "host functions need a GPU"
    device.driver.host_function(device.stream(), function, notice)


def take(device: Device, line: Line, tokens: int, add: torch.Tensor | None = None) -> torch.Tensor:
    """The answer float32 [T, rows], plus `add` of that shape; launched behind a wait."""
    shape = tokens, line.answer.shape[1]
    check_addend(add, shape)
    y = device.empty(shape)
    count = y.numel()
    device.launch(
        take_kernel,
        (cdiv(count, TAKE_BLOCK),),
        *(line.answer, add, y, count),
        BLOCK=TAKE_BLOCK,
    )
    return y


def ring_twin(
    device: Device,
    line: Line,
    x: torch.Tensor,
    ids: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> None:
    _check_fits(line, x, ids, weights)
    line.x[: len(x)] = x
    if ids is not None and weights is not None:
        line.ids[: len(x)] = ids if line.local is None else to_local(ids, line.local)
        line.weights[: len(x)] = weights
    line.token.copy_(line.number)
    line.request.copy_(line.token)


def wait_by_polling_twin(device: Device, line: Line, patience: float) -> None:
    left = 0 if line.failed.item() else int(patience * 1e9 / FEWEST_NS_A_POLL)
    while left and not line.done.item():
        left -= 1
    if not line.done.item():
        line.failed.fill_(1)
        line.abort.fill_(1)
    line.done.fill_(0)


def take_twin(device: Device, line: Line, tokens: int, add: torch.Tensor | None = None) -> torch.Tensor:
    check_addend(add, (tokens, line.answer.shape[1]))
    answer = line.answer[:tokens].to(device.torch_device, copy=True)
    return answer if add is None else answer + add


def to_local(ids: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """As the ring kernel maps them: -1 and numbers beyond the table stay."""
    known = (ids >= 0) & (ids < len(local))
    return torch.where(known, local[torch.where(known, ids, 0).long()], ids)


def check_payload(
    columns: int, used: int, x: torch.Tensor, ids: torch.Tensor | None, weights: torch.Tensor | None
) -> None:
    """ValueError where it is not what a meeting with so many columns and experts a token takes."""
    tokens = len(x)
    needed: list[tuple[str, torch.Tensor | None, int, torch.dtype]] = [("x", x, columns, torch.float32)]
    if used:
        needed += [("ids", ids, used, torch.int32), ("weights", weights, used, torch.float32)]
    elif ids is not None or weights is not None:
        raise ValueError("ids or weights for a meeting without experts")
    for name, tensor, width, type in needed:
        if tensor is None:
            raise ValueError(f"{name} are missing: this meeting takes {used} experts a token")
        if tensor.shape != (tokens, width) or tensor.dtype != type or not tensor.is_contiguous():
            found = f"{tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()}"
            raise ValueError(f"{name} is {found}; needed is contiguous {type} {[tokens, width]}")


def _check_fits(line: Line, x: torch.Tensor, ids: torch.Tensor | None, weights: torch.Tensor | None) -> None:
    check_payload(line.x.shape[1], line.ids.shape[1], x, ids, weights)
    if not 1 <= len(x) <= len(line.x):
        raise ValueError(f"{len(x)} tokens; 1 to {len(line.x)} can be sent")


def check_addend(add: torch.Tensor | None, shape: tuple[int, int]) -> None:
    if add is not None and (add.shape != shape or add.dtype != torch.float32 or not add.is_contiguous()):
        raise ValueError(f"add is {add.dtype} {list(add.shape)}; needed is contiguous torch.float32 {list(shape)}")
