"""How much reasoning a request asks for."""

from hetero.server.ask import Effort, Thinking

# Tokens that an effort stands for; None: no bound. R1 takes about 800 for a riddle and 8,000 to 20,000 for a problem of
# a mathematics olympiad; what is not there in time, the model answers with what it has.
EFFORTS: dict[Effort, int | None] = {
    "minimal": 256,
    "low": 1_024,
    "medium": 4_096,
    "high": 16_384,
    "xhigh": None,
    "max": None,
}


def budget_of(thinking: Thinking) -> int | None:
    """What was asked for in tokens, else what the effort stands for; None: no bound.

    None at all where it is not wanted, in case that the model begins with it by itself.
    """
    if thinking.wanted is False:
        return 0
    if thinking.budget is not None:
        return thinking.budget
    return EFFORTS[thinking.effort] if thinking.effort is not None else None
