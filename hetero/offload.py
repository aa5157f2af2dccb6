"""The meeting point of the GPU's stream and the CPU's pool. The model says `submit` and `collect`; how is decided here.

In a pass of few tokens, inside `Doorbells.run`, GPU and CPU meet through flags in shared memory (docs/offload.md), so
that the pass may be one captured graph. Outside of it payloads are copied and the call waits. On a device without a GPU
the CPU's part is simply called. Flags and copies are never mixed in a pass.

T tokens, k experts a token.
"""

import os
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from cpu_kernels import Pool
from cpu_kernels.pool import WorkerFault
from gpu_kernels import Device, GpuError
from gpu_kernels.doorbell import check_addend, check_payload, to_local
from hetero.errors import OffloadError
from hetero.flags import MOST_TOKENS, Compute, Flags, Part
from hetero.waiting import Mark, choose, idle, passes

PATIENCE = 60.0  # seconds that GPU and CPU wait for each other: experts may have to come from a slow disk


class Meeting:
    """One place of the pass where the CPU computes; made by `Doorbells.meeting`. One is outstanding at a time."""

    def __init__(self, bells: "Doorbells", number: int, part: Part):
        self.bells, self.number, self.part = bells, number, part
        self._collect: Callable[[torch.Tensor | None], torch.Tensor | None] | None = None

    def submit(self, x: torch.Tensor, ids: torch.Tensor | None = None, weights: torch.Tensor | None = None) -> None:
        """x float32 [T, columns], and where the meeting has experts ids int32 [T, k], weights float32 [T, k].

        All contiguous, on the device. Returns at once; ValueError where shapes or types differ.
        """
        bells = self.bells
        bells.check_usable()
        check_payload(self.part.columns, self.part.used, x, ids, weights)
        if bells.by_flags:
            bells.ring(self, x, ids, weights)
            self._collect = partial(bells.answer, self, len(x))
            return
        if ids is not None and self.part.local is not None:
            ids = to_local(ids, self.part.local)
        if bells.apart:
            x, ids, weights = bells.staging.fetch(x, ids, weights)
            bells.fetched.set()
            self._collect = partial(self._computed_staged, x, ids, weights)
        else:
            self._collect = partial(self._computed, x, ids, weights)

    def collect(self, add: torch.Tensor | None = None) -> torch.Tensor | None:
        """The CPU's answer float32 [T, rows], a tensor of its own on the device, plus `add`; None where rows is 0."""
        if self._collect is None:
            raise RuntimeError(f"collect of meeting {self.number} without a submit")
        collect, self._collect = self._collect, None
        return collect(add)

    def drop(self) -> None:
        """The pass has failed: what was submitted, if anything, is collected no more."""
        self._collect = None

    def _called(self, x: torch.Tensor, *others: torch.Tensor | None) -> None:
        """`others`: ids, weights, the answer."""
        ids, weights, out = (None if part is None else part.numpy() for part in others)
        try:
            self.part.compute(x.numpy(), ids, weights, out)
        except WorkerFault as fault:
            self.bells.failure = str(fault)
            raise

    def _computed(self, x, ids, weights, add: torch.Tensor | None) -> torch.Tensor | None:
        """Without a GPU."""
        out = torch.empty((len(x), self.part.rows)) if self.part.rows else None
        self._called(x, ids, weights, out)
        if out is None or add is None:
            return out
        check_addend(add, (len(x), self.part.rows))
        return out + add

    def _computed_staged(self, x, ids, weights, add: torch.Tensor | None) -> torch.Tensor | None:
        """The payload is on its way to pinned memory."""
        bells = self.bells
        if not passes(bells.fetched.reached, bells.patience):
            bells.failure = f"the GPU did not come to meeting {self.number} within {bells.patience:g} s"
            raise OffloadError(bells.failure, "", "load the model again")
        if not self.part.rows:
            self._called(x, ids, weights, None)
            return None
        out = bells.staging.memory("answer", (len(x), self.part.rows), torch.float32)
        self._called(x, ids, weights, out)
        y = bells.device.empty((len(x), self.part.rows))
        y.copy_(out, non_blocking=True)
        if add is not None:
            check_addend(add, (len(x), self.part.rows))
            y.add_(add)
        return y


class Staging:
    """Pinned memory for the payloads of prompts: one of each kind, which grows.

    One is enough: a payload is fetched behind the answer before it, in the order of the stream, and read by the CPU
    before the next is fetched.
    """

    def __init__(self, pin: bool):
        self._pin, self._memory = pin, dict[str, torch.Tensor]()

    def memory(self, name: str, shape: tuple[int, ...], type: torch.dtype) -> torch.Tensor:
        size = type.itemsize * int(np.prod(shape))
        if name not in self._memory or len(self._memory[name]) < size:
            self._memory[name] = torch.empty(size, dtype=torch.uint8, pin_memory=self._pin)
        return self._memory[name][:size].view(type).view(shape)

    def fetch(
        self, x: torch.Tensor, *others: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Copies of x, ids and weights, complete when the stream has come that far."""
        ids, weights = (
            None if part is None else self._copy(name, part)
            for name, part in zip(("ids", "weights"), others, strict=True)
        )
        return self._copy("x", x), ids, weights

    def _copy(self, name: str, source: torch.Tensor) -> torch.Tensor:
        return self.memory(name, tuple(source.shape), source.dtype).copy_(source, non_blocking=True)


class Doorbells:
    """All meetings of a model's pass.

    `patience`: seconds that either side waits for the other. After a failure `failure` says what it was, and every
    further pass is an OffloadError.
    """

    def __init__(self, device: Device, pool: Pool, patience: float = PATIENCE):
        self.device, self.pool, self.patience = device, pool, patience
        self.meetings: list[Meeting] = []
        self.flags: Flags | None = None
        self.apart = device.torch_device.type == "cuda"  # the device has memory of its own
        self.staging, self.fetched = Staging(pin=self.apart), Mark(device)
        self.failure = ""
        self.notes: list[str] = []  # ways of waiting that this machine does not allow, and why
        self._passing = False

    def meeting(
        self,
        compute: Compute,
        columns: int,
        rows: int | None = None,
        *,
        used: int = 0,
        experts: int = 0,
        local: torch.Tensor | None = None,
    ) -> Meeting:
        """The next one in the order of the pass.

        `compute`: the CPU's part, made of calls of the pool's verbs: recorded once for each T up to MOST_TOKENS on
        arrays that stay (x all 0, ids all -1), and called as it is for more tokens. `rows`: of the answer, None: as
        many as columns, 0: there is none. `used`: experts a token, of the CPU's `experts`; 0: x is all of the payload.
        `local`: int32 [E] on the device, the CPU's number of each of the model's experts, or -1; None: ids are such
        numbers.
        """
        if self.flags is not None:
            raise RuntimeError("the doorbells are open: meetings are made before")
        part = Part(compute, columns, columns if rows is None else rows, used, experts, local)
        self.meetings.append(Meeting(self, len(self.meetings), part))
        return self.meetings[-1]

    def open(self, way: str | None = None) -> None:
        """After the last `meeting`. `way`: how the GPU waits, one of waiting.WAYS; None: the first that works here.

        Nothing to do on a device without a GPU. OffloadError where the GPU cannot share memory or wait.
        """
        if not self.meetings or (way is None and not self.apart):
            return
        if os.environ.get("CUDA_LAUNCH_BLOCKING", "0") != "0":
            limit = "a launch that waits for the GPU, which waits for the CPU, hangs"
            raise OffloadError("CUDA_LAUNCH_BLOCKING is set", limit, "unset it")
        try:
            if way is None:
                way, self.notes = choose(self.device)
            self.flags = Flags(self.device, self.pool, [meeting.part for meeting in self.meetings], way, self.patience)
        except GpuError as error:
            raise OffloadError(error.found, error.limit, error.remedy) from error

    def __str__(self) -> str:
        if self.flags is None:
            return f"{len(self.meetings)} meetings of GPU and CPU, without flags"
        return "; ".join([f"{len(self.meetings)} meetings of GPU and CPU by {self.flags.way}", *self.notes])

    @property
    def by_flags(self) -> bool:
        """Whether a submit rings now: in a pass of `run`, or while one is captured."""
        return self.flags is not None and (self._passing or self.device.capturing())

    def check_usable(self) -> None:
        if self.failure:
            raise OffloadError(f"an earlier pass failed: {self.failure}", "", "load the model again")

    def ring(self, meeting: Meeting, x: torch.Tensor, ids: torch.Tensor | None, weights: torch.Tensor | None) -> None:
        flags = self.flags
        assert flags is not None, "checked by_flags"
        if not self.device.capturing() and (meeting.number, len(x)) != (flags.served, flags.tokens):
            found = f"meeting {meeting.number} of {len(x)} tokens"
            raise ValueError(f"{found}; next in this pass is {flags.served}, of {flags.tokens} tokens")
        flags.verbs.ring(flags.lines[meeting.number], x, ids, weights)

    def answer(self, meeting: Meeting, tokens: int, add: torch.Tensor | None) -> torch.Tensor | None:
        """Served here where the pass runs eagerly: then no wait is ever pending, and launching cannot block on one."""
        flags = self.flags
        assert flags is not None, "checked by_flags"
        if not self.device.capturing():
            flags.serve(meeting.number, meeting.number + 1)
        if not meeting.part.rows:
            return None
        line = flags.lines[meeting.number]
        flags.verbs.wait(line)
        return flags.verbs.take(line, tokens, add)

    def run(self, tokens: int, launch: Callable[[], object], captured: bool = False) -> None:
        """A pass of `tokens` tokens: `launch` puts it into the stream; then wait for it.

        `captured`: it replays a graph, and the CPU has its part when that is launched. Otherwise `collect` is called.
        Raises WorkerFault where a kernel of the CPU died, OffloadError where GPU and CPU lost each other, and what
        `launch` raises. After the latter, and after KeyboardInterrupt, the next pass may follow.
        """
        self.check_usable()
        if self.flags is None:
            launch()
            return
        if not 1 <= tokens <= MOST_TOKENS:
            raise ValueError(f"{tokens} tokens; a pass with flags has 1 to {MOST_TOKENS}")
        flags = self.flags
        self._passing = True
        try:
            flags.begin(tokens)
            if captured:
                flags.replay(launch)
            else:
                launch()
            if not passes(partial(idle, self.device), self.patience):
                found = f"the GPU did not finish its pass within {self.patience:g} s"
                raise OffloadError(found, "", "load the model again")
            if flags.aborted:  # in the last wait, behind which nothing is requested
                raise OffloadError("the GPU gave up waiting for the CPU", "", "load the model again")
        except BaseException as error:
            self._recover(flags, error)
            raise
        finally:
            self._passing = False

    def _recover(self, flags: Flags, error: BaseException) -> None:
        """Let the GPU run to the end of its pass, whatever it computes there. Usable again after what is no failure."""
        self.failure = str(error) or type(error).__name__
        flags.region.poison()
        try:
            at_rest = passes(partial(idle, self.device), self.patience)
        except RuntimeError as lost:  # a kernel of the GPU has failed: CUDA is of no more use to this process
            flags.abandon()
            self.failure = f"the GPU failed: {str(lost).strip().splitlines()[0]}"
            raise OffloadError(self.failure, "", "load the model in a new process") from error
        if not at_rest:
            flags.abandon()
            self.failure += "; the GPU does not come to rest"
        elif not isinstance(error, WorkerFault | OffloadError) and not flags.aborted:
            flags.reset()
            self.failure = ""

    def stop(self) -> None:
        """From any thread: the pass that runs ends in an OffloadError, and no other can follow."""
        if self.flags is not None:
            self.flags.stop()

    def close(self) -> None:
        if self.flags is not None:
            self.flags.close()
        self.failure = self.failure or "the doorbells are closed"
