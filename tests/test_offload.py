"""Submit and collect: the same answers whichever way GPU and CPU meet, and an exception in time whatever goes wrong."""

import gc
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cpu_kernels import Pool, linear, routed_experts
from cpu_kernels.doorbell import AWAITED, STOP, TOKEN
from cpu_kernels.pool import WorkerFault
from gpu_kernels.device import Device
from gpu_kernels.driver import Driver
from hetero import flags as flags_module
from hetero import offload
from hetero.errors import HeteroError, OffloadError
from hetero.launch_watch import LaunchWatch
from hetero.offload import MOST_TOKENS, Doorbells, Staging
from hetero.waiting import TWINS, Verbs
from tests import fake_gpu
from tests.fake_cuda import FakeCuda
from tests.fake_gpu import FakeGpu, Mistake, answer
from tests.random_weights import random_matrix
from tests.test_pool import _sleepers as sleepers

COLUMNS, HIDDEN, EXPERTS, USED, VALUES = 64, 32, 4, 3, 96


class Network:
    """A model with three meetings: experts, a matrix alone, and experts of which some live elsewhere."""

    def __init__(self, pool: Pool, way: str | None, apart: bool = False):
        rng = np.random.default_rng(3)
        shapes = [(EXPERTS, HIDDEN, COLUMNS)] * 2 + [(EXPERTS, COLUMNS, HIDDEN)]
        self.experts = tuple(random_matrix("Q8_0", shape, rng)[0] for shape in shapes)
        self.matrix = random_matrix("F16", (COLUMNS, COLUMNS), rng)[0]
        self.local = torch.tensor([2, -1, 0, -1, 3, 1], dtype=torch.int32)
        self.bells = Doorbells(Device.plain(), pool, patience=30.0)
        self.called = 0
        self.meetings = [
            self.bells.meeting(self.routed(pool), COLUMNS, used=USED, experts=EXPERTS),
            self.bells.meeting(lambda x, ids, weights, out: linear(pool, self.matrix, x, out=out), COLUMNS),
            self.bells.meeting(self.routed(pool), COLUMNS, used=USED, experts=EXPERTS, local=self.local),
        ]
        self.bells.open(way)
        if apart:
            self.bells.apart, self.bells.staging = True, Staging(pin=False)

    def routed(self, pool: Pool):
        def compute(x, ids, weights, out):
            self.called += 1
            routed_experts(pool, self.experts, x, ids, weights, out=out)

        return compute

    def forward(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        first, second, third = self.meetings
        first.submit(x, ids % EXPERTS, weights)
        x = first.collect(add=x)
        second.submit(x)
        x = second.collect() / 8
        third.submit(x, ids, weights)
        return third.collect(add=x)


def inputs(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(tokens)
    ids = torch.stack([torch.randperm(6, generator=made)[:USED] for _ in range(tokens)]).int()
    return torch.randn(tokens, COLUMNS, generator=made), ids, torch.rand(tokens, USED, generator=made)


@pytest.fixture(scope="module")
def pool():
    with Pool(2) as pool:
        yield pool


def expected(network: Network, pool: Pool, x, ids, weights) -> torch.Tensor:
    """By the CPU's verbs alone."""

    def experts(x, ids):
        return torch.from_numpy(routed_experts(pool, network.experts, x.numpy(), ids.numpy(), weights.numpy()))

    x = experts(x, ids % EXPERTS) + x
    x = torch.from_numpy(linear(pool, network.matrix, x.numpy())) / 8
    return experts(x, network.local[ids.long()]) + x


def test_without_a_gpu(pool):
    network = Network(pool, None)
    assert network.bells.flags is None and "without flags" in str(network.bells)
    for tokens in (1, 8, 40):
        given, got = inputs(tokens), []
        network.bells.run(tokens, lambda given=given, got=got: got.append(network.forward(*given)))
        for result in (*got, network.forward(*given)):
            assert torch.equal(result, expected(network, pool, *given))


def test_payloads_of_a_prompt_are_copied(pool):
    """The path of a GPU, on CPU tensors: pinned memory grows, is used again, and answers are not overwritten."""
    network = Network(pool, None, apart=True)
    given = {tokens: inputs(tokens) for tokens in (3, 70, 20)}
    got = {tokens: network.forward(*given[tokens]) for tokens in given}
    for tokens in given:
        assert torch.equal(got[tokens], expected(network, pool, *given[tokens]))


def test_a_pass_by_flags(pool):
    """The whole protocol on one thread: ring, serve, wait, take back, take."""
    network = Network(pool, TWINS)
    for tokens in (1, 3, MOST_TOKENS, 1, 3):
        given, got = inputs(tokens), []
        network.bells.run(tokens, lambda given=given, got=got: got.append(network.forward(*given)))
        assert torch.equal(got[0], expected(network, pool, *given))
    assert network.called == 2 * 3, "each number of tokens is recorded once"
    assert network.bells.flags.token == 5
    assert torch.equal(network.forward(*given), expected(network, pool, *given))  # outside of a pass: copies or calls
    assert network.bells.flags.token == 5


def test_a_pass_that_is_launched_bit_by_bit_never_waits(pool):
    """Each answer is there before its wait is launched: nothing that launching might block on waits for the CPU."""
    network, waits = Network(pool, TWINS), []
    flags = network.bells.flags
    verbs = flags.verbs

    def wait(line):
        waits.append(int(line.done))
        verbs.wait(line)

    flags.verbs = Verbs(verbs.ring, wait, verbs.take)
    network.bells.run(2, lambda: network.forward(*inputs(2)))
    assert waits == [1, 1, 1]


def test_what_is_out_of_order_is_refused(pool):
    network = Network(pool, TWINS)
    x, ids, weights = inputs(2)
    with pytest.raises(RuntimeError, match="are made before"):
        network.bells.meeting(print, COLUMNS)
    with pytest.raises(ValueError, match=r"meeting 1 of 2 tokens; next in this pass is 0, of 2 tokens"):
        network.bells.run(2, lambda: network.meetings[1].submit(x))
    with pytest.raises(ValueError, match=r"meeting 0 of 2 tokens; next in this pass is 0, of 3 tokens"):
        network.bells.run(3, lambda: network.forward(x, ids, weights))
    with pytest.raises(ValueError, match="9 tokens; a pass with flags has 1 to 8"):
        network.bells.run(9, print)
    with pytest.raises(RuntimeError, match="collect of meeting 2 without a submit"):
        network.meetings[2].collect()
    with pytest.raises(ValueError, match="ids are missing"):
        network.meetings[0].submit(x)
    network.meetings[1].submit(x)
    with pytest.raises(ValueError, match="add is"):
        network.meetings[1].collect(add=x[:1])
    got = []
    network.bells.run(2, lambda: got.append(network.forward(x, ids, weights)))  # none of this has harmed it
    assert torch.equal(got[0], expected(network, pool, x, ids, weights))


def test_a_part_that_would_not_be_recorded_is_refused(pool):
    bells = Doorbells(Device.plain(), pool)
    bells.meeting(lambda x, ids, weights, out: np.multiply(x, 2, out=out), 32)
    bells.open(TWINS)
    with pytest.raises(ValueError, match="meeting 0 calls no verb of the pool"):
        bells.run(1, print)


def test_an_expert_beyond_the_last_one(pool):
    with Pool(1) as own:
        network = Network(own, TWINS)
        x, ids, weights = inputs(1)
        ids[0, 0] = 6  # beyond the table of local numbers, too
        with pytest.raises(WorkerFault, match=r"check_experts died"):
            network.bells.run(1, lambda: network.forward(x, ids, weights))


class Played:
    """Doorbells whose passes a FakeGpu plays, one thread a pass, as a graph's replay would."""

    def __init__(self, pool: Pool, monkeypatch: pytest.MonkeyPatch, meetings: int = 3, patience: float = 30.0):
        self.bells, self.arguments = Doorbells(Device.plain(), pool, patience), list[np.ndarray]()
        for i in range(meetings):
            self.bells.meeting(self.part(pool, i), VALUES, used=USED, experts=8)
        self.bells.open(TWINS)
        self.gpu: FakeGpu | None = None
        monkeypatch.setattr(offload, "idle", lambda device: self.gpu is None or self.gpu.idle())

    def part(self, pool: Pool, number: int):
        def compute(x, ids, weights, out):
            self.arguments.append(answer(pool, (x, ids, weights, out), thread=number % 2))

        return compute

    def replay(self, mistake: Mistake = fake_gpu.RIGHT, patience: float = 60.0) -> None:
        flags = self.bells.flags
        _, table = flags._programs[1]
        self.gpu = FakeGpu(flags.region, table.copy(), flags.token, 1, mistake, patience)
        self.gpu.thread.start()

    def run(self, mistake: Mistake = fake_gpu.RIGHT, patience: float = 60.0) -> None:
        self.bells.run(1, lambda: self.replay(mistake, patience), captured=True)

    def wait_at_most(self, seconds: float) -> None:
        """From now on."""
        flags = self.bells.flags
        self.bells.patience = flags.patience = flags.watch.patience = seconds
        with flags.watch._changed:  # it sleeps for as long as it was to wait for the last launch
            flags.watch._changed.notify()

    def assert_unusable(self, match: str) -> None:
        """And the GPU is at rest."""
        assert self.gpu.idle()
        with pytest.raises(OffloadError, match=f"an earlier pass failed: .*{match}.*; load the model again"):
            self.run()
        with pytest.raises(OffloadError, match="an earlier pass failed"):
            self.bells.meetings[0].submit(torch.ones(1, VALUES))


def test_passes_of_a_graph(monkeypatch):
    with Pool(1) as pool:
        played = Played(pool, monkeypatch)
        for _ in range(100):
            played.run()
            assert played.gpu.wrong == [0]
        played.bells.flags.token = 2**31 - 3
        for i in range(3):
            played.bells.flags.region.request(i)[0] = 2**31 - 3
        for _ in range(5):
            played.run()
            assert played.gpu.wrong == [0]
        assert played.bells.flags.token == -(2**31) + 2 == played.bells.flags.region.word(TOKEN)[0]


SHORT = 1.0  # seconds: the patience of whoever is to lose it; on a busy machine all others need some of it, too
MISTAKES = [
    (Mistake(fake_gpu.LATE, 0, 1), SHORT, "the GPU did not come to meeting 1 of 3 within 1 s"),
    (Mistake(fake_gpu.AHEAD, 0, 2), 30.0, "the GPU is at another token than the CPU at meeting 2 of 3"),
    (Mistake(fake_gpu.ABORTS, 0, 0), 30.0, "the GPU gave up waiting for the CPU before meeting 1 of 3"),
    (Mistake(fake_gpu.ABORTS, 0, 2), 30.0, "the GPU gave up waiting for the CPU"),
]


@pytest.mark.parametrize(("mistake", "patience", "message"), MISTAKES)
def test_mistakes_of_the_gpu(monkeypatch, mistake, patience, message):
    with Pool(1) as pool:
        played = Played(pool, monkeypatch)
        played.run()
        played.wait_at_most(patience)
        with pytest.raises(OffloadError, match=message) as caught:
            played.run(mistake)
        assert isinstance(caught.value, HeteroError) and isinstance(caught.value, RuntimeError)
        played.assert_unusable(message)


def test_a_launch_that_does_not_return_while_the_gpu_waits(monkeypatch):
    """A queue is full, say, and empties when the GPU goes on; but it waits for the CPU, which launches."""
    with Pool(1) as pool:
        played = Played(pool, monkeypatch)
        played.run()
        played.wait_at_most(SHORT)

        def launch():
            played.replay()
            played.gpu.thread.join()

        with pytest.raises(OffloadError, match=r"launching the pass took longer than 1 s; .* with --no-graph"):
            played.bells.run(1, launch, captured=True)
        assert not played.bells.flags.aborted, "it waited until it gave up"
        played.assert_unusable("launching the pass")


def asleep() -> bool:
    """Whether no thread of this process runs, or is ready to, but the one that asks."""
    me = threading.get_native_id()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            state = task.joinpath("stat").read_text().rpartition(")")[2].split()[0]
            if int(task.name) != me and state not in "SI":
                return False
    return True


def test_between_passes_all_threads_sleep(monkeypatch):
    """Workers a millisecond after their last job, the watch for good once its time is over."""
    with Pool(2) as pool:
        played = Played(pool, monkeypatch)
        watch, end = played.bells.flags.watch, time.monotonic() + 60
        watch.patience = SHORT
        for _ in range(3):
            played.run()
        while not (watch.asleep and sleepers(pool) == 1 and asleep()):
            assert time.monotonic() < end, "somebody does not sleep"
            time.sleep(1e-3)
        played.run()
        assert played.gpu.wrong == [0]
        played.bells.close()
        watch._thread.join(60)
        assert not watch._thread.is_alive()


def test_a_flag_that_is_not_taken_back(monkeypatch):
    with Pool(1) as pool:
        played = Played(pool, monkeypatch)
        played.run(Mistake(fake_gpu.UNTAKEN, 0, 1))
        with pytest.raises(OffloadError, match="did not take back the flag of meeting 1 of 3"):
            played.run()
        played.assert_unusable("did not take back")


@pytest.mark.parametrize(
    ("meeting", "gpu", "cpu", "message"),
    [
        (1, 60.0, SHORT, "did not come to meeting 2 of 3 within 1 s"),  # a memory operation waits for ever
        (1, SHORT, 30.0, "gave up waiting for the CPU before meeting 2 of 3"),  # a polling kernel does not
        (2, 60.0, SHORT, "did not finish its pass within 1 s"),
        (2, SHORT, 30.0, "gave up waiting for the CPU"),
    ],
)
def test_a_dropped_answer(monkeypatch, meeting, gpu, cpu, message):
    with Pool(1) as pool:
        played = Played(pool, monkeypatch)
        played.run()
        played.wait_at_most(cpu)
        flags = played.bells.flags

        def launch():
            played.replay(patience=gpu)
            flags._programs[1][1][meeting, AWAITED] = 0  # the CPU computes and does not say so

        with pytest.raises(OffloadError, match=message):
            played.bells.run(1, launch, captured=True)
        played.assert_unusable(message)


@pytest.mark.parametrize(("threads", "meeting"), [(1, 0), (2, 1), (2, 2)])
def test_a_worker_dies(monkeypatch, threads, meeting):
    """A thread of the pool is killed in the middle of a pass."""
    with Pool(threads) as pool:
        played = Played(pool, monkeypatch)
        for _ in range(3):
            played.run()
        played.arguments[meeting][7] = 16
        with pytest.raises(WorkerFault, match=rf"answer_job died on thread {meeting % 2}"):
            played.run()
        played.assert_unusable("answer_job died")


@pytest.mark.soak
def test_kills_timeouts_and_aborts_often(monkeypatch):
    for i in range(50):
        test_a_worker_dies(monkeypatch, 2, i % 3)
        for case in MISTAKES:
            test_mistakes_of_the_gpu(monkeypatch, *case)


def test_a_gpu_that_never_comes_to_rest(monkeypatch):
    """Poison does not help: the memory stays, and nobody waits for ever."""
    with Pool(1) as pool:
        played = Played(pool, monkeypatch, patience=SHORT)
        monkeypatch.setattr(offload, "idle", lambda device: False)
        with pytest.raises(OffloadError, match="did not finish its pass"):
            played.run()
        assert played.bells.failure.endswith("the GPU does not come to rest")
        assert flags_module._LOST[-1] is played.bells.flags.region
        played.gpu.thread.join()


def test_a_gpu_that_is_lost(monkeypatch):
    with Pool(1) as pool:
        played = Played(pool, monkeypatch)

        def idle(device):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(offload, "idle", idle)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            played.run()
        assert played.bells.failure.startswith("the GPU failed: CUDA error: an illegal memory access")
        played.gpu.thread.join()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("started", [False, True])
def test_an_interrupted_pass_may_be_followed_by_others(monkeypatch, error, started):
    with Pool(1) as pool:
        played = Played(pool, monkeypatch)
        played.run()

        def launch():
            if started:
                played.replay()
            raise error("on the way")

        with pytest.raises(error, match="on the way"):
            played.bells.run(1, launch, captured=True)
        assert played.gpu.idle() and not played.bells.failure
        for _ in range(3):
            played.run()
            assert played.gpu.wrong == [0]


def test_an_interrupt_before_the_launch_leaves_no_watch(monkeypatch):
    """Ctrl-C just when the watch has begun: it lets no later pass go on."""

    class Interrupted(LaunchWatch):
        def __enter__(self):
            super().__enter__()
            raise KeyboardInterrupt

    with Pool(1) as pool:
        played = Played(pool, monkeypatch)
        played.run()
        flags = played.bells.flags
        watch, flags.watch = flags.watch, Interrupted(0.05, flags.region.poison)
        with pytest.raises(KeyboardInterrupt):
            played.run()
        time.sleep(0.3)  # in which the watch would let the GPU go on
        assert not flags.region.untaken()
        flags.watch.close()
        flags.watch = watch
        played.run()
        assert played.gpu.wrong == [0]


def test_an_interrupt_behind_the_last_answer(monkeypatch):
    with Pool(1) as pool:
        played = Played(pool, monkeypatch)
        with monkeypatch.context() as patch:

            def interrupted(reached, patience):
                patch.undo()
                raise KeyboardInterrupt

            patch.setattr(offload, "passes", interrupted)
            with pytest.raises(KeyboardInterrupt):
                played.run()
        assert not played.bells.failure
        played.gpu.thread.join(20)


def test_stopped_by_another_thread(monkeypatch):
    with Pool(1) as pool:
        played = Played(pool, monkeypatch)
        with pytest.raises(OffloadError, match="stopped before meeting 0 of 3"):
            played.bells.run(1, lambda: threading.Timer(0.05, played.bells.stop).start(), captured=True)
        assert played.bells.flags.region.word(STOP)[0] == 1
        with pytest.raises(OffloadError, match="an earlier pass failed: the pass was stopped"):
            played.run()


@pytest.fixture
def recorded():
    """A device of a GPU whose driver writes down what it is asked for; capturing while `state.capturing`."""
    library, state = FakeCuda(), SimpleNamespace(capturing=False)
    calls = {"driver": Driver(library), "stream": lambda: 7, "capturing": lambda: state.capturing}
    device = Device(torch.device("cpu"), capability=89, sms=128, **calls)
    return library, device, state


@pytest.mark.parametrize("way", ["memory operations", "polling kernel", "host functions"])
def test_a_capture_records_and_serves_nothing(pool, recorded, way):
    library, device, state = recorded
    bells = Doorbells(device, pool)
    for rows in (COLUMNS, COLUMNS, 0):
        bells.meeting(lambda x, ids, weights, out: 1 / 0, COLUMNS, rows)
    bells.open(way)
    region = bells.flags.region
    assert library.called("cuMemHostRegister_v2") == [[region.address, region.memory.nbytes, 3]]
    line, verbs = bells.flags.lines[0], bells.flags.verbs
    verbs.ring(line, torch.ones(2, COLUMNS)), verbs.wait(line), verbs.take(line, 2)  # loaded before
    library.calls.clear()
    state.capturing = True
    for meeting in bells.meetings:
        meeting.submit(torch.ones(2, COLUMNS))
        y = meeting.collect()
        assert (y is None) == (meeting.number == 2)
    verbs = {"cuLaunchKernel": "launch", "cuStreamBatchMemOp_v2": "wait", "cuLaunchHostFunc": "wait"}
    order = [verbs[call[0]] for call in library.calls if call[0] in verbs]
    wait = "launch" if way == "polling kernel" else "wait"
    assert order == ["launch", wait, "launch"] * 2 + ["launch"]
    bells.close()
    assert library.called("cuMemHostUnregister") == [[region.address]]
    with pytest.raises(OffloadError, match="the doorbells are closed"):
        bells.meetings[0].submit(torch.ones(2, COLUMNS))


def test_launches_that_block_are_refused(pool, monkeypatch):
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    bells = Doorbells(Device.plain(), pool)
    bells.meeting(print, COLUMNS)
    with pytest.raises(OffloadError, match=r"CUDA_LAUNCH_BLOCKING is set; .*; unset it"):
        bells.open(TWINS)


def test_memory_that_cannot_be_registered(pool, recorded):
    library, device, _ = recorded
    library.fails["cuMemHostRegister_v2"] = [1]
    bells = Doorbells(device, pool)
    bells.meeting(print, COLUMNS)
    with pytest.raises(OffloadError, match=r"cuMemHostRegister_v2 of .* bytes: CUDA_ERROR_INVALID_VALUE"):
        bells.open("polling kernel")


def test_memory_is_given_back_with_its_owner(pool, recorded):
    library, device, _ = recorded
    bells = Doorbells(device, pool)
    bells.meeting(print, COLUMNS)
    bells.open("polling kernel")
    del bells
    gc.collect()
    assert len(library.called("cuMemHostUnregister")) == 1
