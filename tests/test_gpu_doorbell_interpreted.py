"""The doorbell's kernels in Triton's interpreter, against a thread that plays the CPU; and their twins."""

import threading
import time

import pytest
import torch

from gpu_kernels import doorbell
from gpu_kernels.device import Device
from gpu_kernels.doorbell import Line

pytestmark = pytest.mark.interpreter
TOKENS, COLUMNS, USED = 8, 288, 3


def make_line(used: int = USED, local: torch.Tensor | None = None) -> Line:
    def words() -> torch.Tensor:
        return torch.zeros(1, dtype=torch.int32)

    ids = torch.full((TOKENS, used), -9, dtype=torch.int32)
    arrays = torch.zeros(TOKENS, COLUMNS), ids, torch.zeros(TOKENS, used), torch.zeros(TOKENS, COLUMNS)
    return Line(*arrays, *(words() for _ in range(6)), local)


def payload(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(tokens)
    x, weights = torch.randn(tokens, COLUMNS, generator=made), torch.rand(tokens, USED, generator=made)
    ids = torch.randint(-1, 12, (tokens, USED), generator=made, dtype=torch.int32)
    ids[0, 0] = 10  # just beyond the table below
    return x, ids, weights


@pytest.mark.parametrize("tokens", [1, 3, 8])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_ring_sends_everything_and_then_the_number(tokens, mapped):
    local = torch.tensor([3, -1, 0, 7, -1, 2, 1, -1, 4, 5], dtype=torch.int32) if mapped else None
    x, ids, weights = payload(tokens)
    expected = ids.clone()
    for at in ids.reshape(-1).argsort() if mapped else ():
        t, j = divmod(int(at), USED)
        if 0 <= ids[t, j] < 10:
            expected[t, j] = local[ids[t, j]]
    for ring in (doorbell.ring, doorbell.ring_twin):
        line = make_line(local=local)
        line.number.fill_(-5)
        ring(Device.interpreter(), line, x, ids, weights)
        assert torch.equal(line.x[:tokens], x) and torch.equal(line.weights[:tokens], weights)
        assert torch.equal(line.ids[:tokens], expected)
        assert not line.x[tokens:].any() and (line.ids[tokens:] == -9).all()
        assert (line.token.item(), line.request.item(), line.done.item()) == (-5, -5, 0)


def test_a_ring_of_x_alone():
    line = make_line(used=0)
    line.number.fill_(8)
    x = payload(2)[0]
    doorbell.ring(Device.interpreter(), line, x)
    assert torch.equal(line.x[:2], x) and line.request.item() == 8


@pytest.mark.parametrize(
    "names", [("ring", "wait_by_polling", "take"), ("ring_twin", "wait_by_polling_twin", "take_twin")]
)
def test_an_answer_is_waited_for_taken_and_taken_back(names):
    ring, wait, take = (getattr(doorbell, name) for name in names)
    device, line, seen = Device.interpreter(), make_line(), []

    def cpu() -> None:
        end = time.monotonic() + 60
        while line.request.item() != 4 and time.monotonic() < end:
            time.sleep(0.001)
        seen.append((line.x[:2].clone(), line.done.item()))
        time.sleep(0.02)
        line.answer[:2] = 3 * line.x[:2]
        line.done.fill_(1)

    line.number.fill_(4)
    thread = threading.Thread(target=cpu)
    thread.start()
    x, ids, weights = payload(2)
    ring(device, line, x, ids, weights)
    wait(device, line, 1e3)
    y = take(device, line, 2, x)
    thread.join()
    assert torch.equal(seen[0][0], x) and seen[0][1] == 0
    assert torch.equal(y, 3 * x + x)
    assert torch.equal(take(device, line, 2), 3 * x)
    assert (line.done.item(), line.abort.item(), line.failed.item()) == (0, 0, 0)


@pytest.mark.parametrize("wait", [doorbell.wait_by_polling, doorbell.wait_by_polling_twin])
def test_a_wait_in_vain_aborts_and_later_ones_do_not_wait(wait):
    device, line = Device.interpreter(), make_line()
    wait(device, line, 50 * 500e-9)
    assert (line.done.item(), line.abort.item(), line.failed.item()) == (0, 1, 1)
    line.abort.fill_(0)
    wait(device, line, 1e6)  # would take hours
    assert (line.abort.item(), line.failed.item()) == (1, 1)
    line.abort.fill_(0)
    line.done.fill_(1)  # as poison does
    wait(device, line, 1e6)
    assert (line.done.item(), line.abort.item()) == (0, 0)
