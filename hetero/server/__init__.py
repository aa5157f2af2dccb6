"""The model as a local service: OpenAI's and Anthropic's HTTP interfaces, streamed, for several clients at once.

    request -> gate.py (address, key, limits) -> body.py -> *_form.py (what an interface has; *_fields.py: what several
    have) -> ask.py (what is wanted, whatever the interface) -> service.py (prompt, tokens) -> the scheduler's thread ->
    exchange.py, choice.py (text) -> *_answer.py (the interface's own words) -> sse.py

The event loop runs in the main thread, everything of the model in the scheduler's.
"""
