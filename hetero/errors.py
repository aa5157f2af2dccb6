"""Every error a caller may meet, as one tree.

    HeteroError
      ├─ FileError          the model file is not what it claims to be: damaged, hostile, incomplete
      ├─ UnsupportedError   a sound file (or a combination of settings) that this version does not implement
      ├─ ResourceError      it does not fit: memory, context, disk
      ├─ RequestError       a request that cannot be met: impossible sampling values, too long a prompt
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


class RequestError(HeteroError):
    """The request itself cannot be met."""


class TemplateError(HeteroError):
    """The chat template failed, looped, or asked for something forbidden."""


class KernelError(HeteroError):
    """A worker failed inside a kernel."""


class OffloadError(HeteroError, RuntimeError):
    """GPU and CPU lost each other in the middle of a pass: late, stopped, or not at the same token."""
