"""Which of several prompts is read next.

Half of the time is for the one that came first, half for the one that has least left: nobody waits for ever, and a
short prompt is not kept waiting by a long one. At most two passes are under way, the others need no memory for theirs.

A prompt that begins as another one does, which is being read, waits for it where that is sooner than reading it twice.
"""

from collections.abc import Sequence as Some

from hetero.cache import PAGE
from hetero.engine import pass_end
from hetero.prefixes import common
from hetero.sequence import Sequence


class Turns:
    """`first`: of two prompts that are read, how many seconds more than the other the one had that came first."""

    def __init__(self) -> None:
        self.first = 0.0

    def next(self, reading: Some[Sequence]) -> Sequence:
        """`reading` in the order in which they came."""
        able = [sequence for sequence in reading if sequence.pieces is not None or not waits(sequence, reading)]
        oldest, others = able[0], able[1:]
        if not others:
            self.first = 0.0
            return oldest
        begun = [sequence for sequence in others if sequence.pieces is not None]
        shortest = min(begun or others, key=lambda sequence: sequence.left)
        return oldest if self.first <= 0 else shortest

    def took(self, sequence: Sequence, reading: Some[Sequence], seconds: float) -> None:
        if len(reading) > 1:
            self.first += seconds if sequence is reading[0] else -seconds


def waits(sequence: Sequence, reading: Some[Sequence]) -> bool:
    """For one that came earlier and reads what this one needs: twice what it is spared is the longest wait."""
    return any(
        other.done < shared
        and sequence.done < shared
        and cached_with(other, shared) - other.done <= 2 * (shared - sequence.done)
        for other, shared in sequence.shared
        if other in reading
    )


def cached_with(sequence: Sequence, tokens: int) -> int:
    """How many of its tokens will be cached when a pass has ended that has the first `tokens`."""
    end = sequence.done
    while end < tokens:
        end = pass_end(end, len(sequence.prompt))
    return end


def shared_with(sequence: Sequence, reading: Some[Sequence]) -> list[tuple[Sequence, int]]:
    """Of each of these prompts how many tokens, in whole pages, `sequence` begins with."""
    found = ((other, common(other.prompt, sequence.prompt) // PAGE * PAGE) for other in reading)
    return [(other, tokens) for other, tokens in found if tokens]
