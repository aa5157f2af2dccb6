"""Every error a caller may meet, as one tree.

    HeteroError
      ├─ FileError          the model file is not what it claims to be: damaged, hostile, incomplete
      ├─ UnsupportedError   a sound file (or a combination of settings) that this version does not implement
      ├─ ResourceError      it does not fit: memory, context, disk
      │    ├─ GpuMemoryError   the GPU's memory ran out in a pass; also a MemoryError
      │    ├─ QueueFull        too many requests wait already
      │    └─ Draining         nothing new is taken any more
      ├─ RequestError       a request that cannot be met: impossible sampling values, too long a prompt
      │    └─ ContextExceeded  the prompt leaves no room in what is promised to a sequence
      ├─ TemplateError      the chat template failed, looped or asked for something forbidden
      ├─ KernelError        a worker failed inside a kernel; names the kernel
      └─ OffloadError       GPU and CPU lost each other in the middle of a pass; also a RuntimeError

A message always says three things: what was found, what the limit is, and the remedy.
The command line prints it as one line and exits with status 1; no traceback.
"""


class HeteroError(Exception):
    """`found` what is the case, `limit` what would be allowed, `remedy` what to do about it; one line each."""

    def __init__(self, found: str, limit: str = "", remedy: str = ""):
        self.found, self.limit, self.remedy = found, limit, remedy
        super().__init__("; ".join(part for part in (found, limit, remedy) if part))


class FileError(HeteroError):
    """The model file is damaged, incomplete or hostile."""


class UnsupportedError(HeteroError):
    """A sound file, or a combination of settings, that is not implemented."""


class ResourceError(HeteroError):
    """It does not fit into memory, context or disk."""


class GpuMemoryError(ResourceError, MemoryError):
    """The GPU's memory ran out in a pass: of this pass nothing is left, the next one may follow."""


class QueueFull(ResourceError):
    """Too many requests wait already. `retry_after`: seconds until there may be room."""

    def __init__(self, waiting: int, retry_after: float):
        self.waiting, self.retry_after = waiting, retry_after
        found = "1 request is waiting" if waiting == 1 else f"{waiting} requests are waiting"
        super().__init__(found, "no more may", f"try again in {retry_after:.0f} s")


class Draining(ResourceError):
    """What runs is finished, nothing new is taken."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down", "nothing new is taken", "try another one, or later")


class RequestError(HeteroError):
    """The request itself cannot be met."""


class ContextExceeded(RequestError):
    """`prompt` tokens, where at least one has to follow in the `context` of a sequence."""

    def __init__(self, prompt: int, context: int):
        self.prompt, self.context = prompt, context
        super().__init__(f"the prompt has {prompt:,} tokens", f"the context holds {context:,}", "shorten the prompt")


class TemplateError(HeteroError):
    """The chat template failed, looped, or asked for something forbidden."""


class KernelError(HeteroError):
    """A worker failed inside a kernel."""


class OffloadError(HeteroError, RuntimeError):
    """GPU and CPU lost each other in the middle of a pass: late, stopped, or not at the same token."""
