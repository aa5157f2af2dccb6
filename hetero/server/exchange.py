"""The sequences of one HTTP request: submitted, listened to from the event loop, cancelled when the client goes."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from hetero.request import Event, Generated, Request
from hetero.server.body import Gone
from hetero.server.choice import Choice, Delta, Finished, Usage
from hetero.server.prompts import Prepared
from hetero.server.record import Record

if TYPE_CHECKING:
    from hetero.scheduler import Scheduler, Ticket
    from hetero.tokenizer import Tokenizer


class Exchange:
    """Choices are numbered prompt by prompt. Of one prompt the first is begun alone; the others wait for its first
    token, so that they find the prompt in the cache."""

    def __init__(
        self,
        scheduler: "Scheduler",
        tokenizer: "Tokenizer",
        prompts: Sequence[Prepared],
        copies: int,
        record: Record,
    ):
        self._scheduler, self._stop_ids, self._copies = scheduler, tokenizer.stop_ids, copies
        self._record = record
        self._prompts = [prepared for prepared in prompts for _ in range(copies)]
        self.choices = [Choice(tokenizer, one) for one in self._prompts]
        self._tickets: dict[int, Ticket] = {}
        self._events: asyncio.Queue[tuple[int, Event, float] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._gone = False

    def begin(self) -> None:
        """Raises what `Scheduler.submit` does; then nothing of this request runs."""
        try:
            for index in range(0, len(self._prompts), self._copies):
                self._submit(index, later=index > 0)
        except BaseException:
            self.close()
            raise

    @property
    def usage(self) -> Usage:
        """Of all choices together; a prompt counts once."""
        firsts = [choice.usage for choice in self.choices[:: self._copies]]
        return Usage(
            prompt_tokens=sum(one.prompt_tokens for one in firsts),
            cached_tokens=sum(one.cached_tokens for one in firsts),
            generated_tokens=sum(choice.usage.generated_tokens for choice in self.choices),
            reasoning_tokens=sum(choice.usage.reasoning_tokens for choice in self.choices),
        )

    @property
    def request_id(self) -> str:
        return self._record.id

    @property
    def finished(self) -> bool:
        return all(choice.finished for choice in self.choices)

    async def next(self, seconds: float | None = None) -> list[tuple[int, Delta]] | None:
        """What came next, and of which choice; None after `seconds` without an event. Gone: the client is."""
        await asyncio.sleep(0)  # others' turn, however much waits here
        try:
            async with asyncio.timeout(seconds):
                found = await self._events.get()
        except TimeoutError:
            return None
        if found is None or self._gone:
            raise Gone
        index, event, at = found
        choice = self.choices[index]
        deltas = choice.take(event, at)
        if isinstance(event, Generated) and self._record.first_token_seconds is None:
            self._record.first_token_seconds = self._record.elapsed()
        self._record.finish += [delta.reason for delta in deltas if isinstance(delta, Finished)]
        if choice.stopped:
            self._tickets[index].cancel()
        if choice.begun and index % self._copies == 0:
            for sibling in range(index + 1, index + self._copies):
                if sibling not in self._tickets:
                    self._submit(sibling, later=True)
        return [(index, delta) for delta in deltas]

    def leave(self) -> None:
        """The client went away: nothing more is computed, and whoever waits in `next` is told."""
        self._gone = True
        self.close()
        self._events.put_nowait(None)

    def close(self) -> None:
        used = self.usage
        self._record.prompt_tokens, self._record.cached_tokens = used.prompt_tokens, used.cached_tokens
        self._record.generated_tokens = used.generated_tokens
        for ticket in self._tickets.values():
            ticket.cancel()

    def _submit(self, index: int, later: bool) -> None:
        one = self._prompts[index]
        sampling = one.sampling
        if sampling.seed is not None and (copy := index % self._copies):
            sampling = replace(sampling, seed=(sampling.seed + copy) % (1 << 64))
        request = Request(
            ids=one.ids,
            sampling=sampling,
            stop_ids=self._stop_ids,
            listener=lambda event: self._heard(index, event),
            logprobs=one.logprobs,
            constraint=one.constraint() if one.constraint else None,
            later=later,
        )
        self._tickets[index] = self._scheduler.submit(request)

    def _heard(self, index: int, event: Event) -> None:
        """In the scheduler's thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event, perf_counter()))
