"""What is asked of the scheduler, and what it tells while it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hetero.continuation import Constraint, Generated
from hetero.errors import HeteroError
from hetero.sampler import Sampling
from hetero.telemetry import Telemetry

Reason = Literal["stop", "length", "cancelled", "failed"]


@dataclass(frozen=True)
class Started:
    """A sequence has its place. `cached_tokens` of the prompt are there already; it may be more in the end."""

    cached_tokens: int


@dataclass(frozen=True)
class Read:
    """So many tokens of the prompt are in the cache, of so many."""

    done: int
    total: int


@dataclass(frozen=True)
class Ended:
    """The last event of every request. `error`: why it failed."""

    reason: Reason
    error: HeteroError | None
    telemetry: Telemetry


Event = Started | Read | Generated | Ended


@dataclass(frozen=True, eq=False)
class Request:
    """`listener` is called in the scheduler's thread and must return at once: Started, Read, Generated, Ended, in this
    order, Ended always and once. Stop ids are not told.

    `logprobs`: how many of the most probable tokens are told with each, by the model's own distribution; None: no
    logprobs. `constraint` is used in the scheduler's thread only. `later`: further answers to a request that was
    accepted already; they do not count among those that wait.
    """

    ids: Sequence[int] | np.ndarray
    sampling: Sampling
    stop_ids: frozenset[int]
    listener: Callable[[Event], None]
    logprobs: int | None = None
    constraint: Constraint | None = None
    later: bool = False
