"""What a client is told when a request fails: the status, and the error object of the interface it speaks.

OpenAI: {"error": {"message", "type", "param", "code"}}; Anthropic, below /v1/messages: {"type": "error", "error":
{"type", "message"}, "request_id"}. Never a traceback, never a path of this machine.
"""

from typing import Any

from hetero.errors import (
    ContextExceeded,
    Draining,
    HeteroError,
    QueueFull,
    RequestError,
    ResourceError,
    TemplateError,
    UnsupportedError,
)

OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
ANTHROPIC_TYPES = OPENAI_TYPES | {413: "request_too_large", 408: "timeout_error", 503: "overloaded_error"}

LOGGED = "the server's log says why, under the request's id"  # which may name files and addresses


class Refusal(Exception):
    """`param`: the field that is wrong. `code`: what a program can react to."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    @property
    def kind(self) -> str:
        """In OpenAI's words."""
        return OPENAI_TYPES.get(self.status, self._fallback)

    @property
    def _fallback(self) -> str:
        return "invalid_request_error" if self.status < 500 else "api_error"

    def document(self, path: str, request_id: str) -> dict[str, Any]:
        """As the interface that `path` belongs to writes it."""
        if is_anthropic(path):
            error = {"type": ANTHROPIC_TYPES.get(self.status, self._fallback), "message": self.message}
            return {"type": "error", "error": error, "request_id": request_id}
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def is_anthropic(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def bad(found: str, limit: str = "", remedy: str = "", *, param: str | None = None, code: str | None = None) -> Refusal:
    """A request that this server does not take: found, limit, remedy."""
    return Refusal(400, "; ".join(part for part in (found, limit, remedy) if part), param=param, code=code)


def too_long(prompt: int, context: int, param: str | None = None, at_least: bool = False) -> Refusal:
    found = f"the prompt has {'at least ' if at_least else ''}{prompt:,} tokens"
    limit = f"the context holds {context:,}" + (", one of them the answer's" if prompt == context else "")
    return bad(found, limit, "shorten the prompt", param=param, code="context_length_exceeded")


def refusal_of(error: BaseException) -> Refusal:
    """Of what was raised on the way; what is nobody's mistake but ours says nothing of how it happened."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ContextExceeded):
        return too_long(error.prompt, error.context)
    if isinstance(error, QueueFull):
        headers = {"retry-after": str(max(1, round(error.retry_after)))}
        return Refusal(429, str(error), code="queue_full", headers=headers)
    if isinstance(error, Draining):
        headers = {"retry-after": "30", "connection": "close"}  # its body may not have come
        return Refusal(503, str(error), code="draining", headers=headers)
    if isinstance(error, (RequestError, TemplateError, UnsupportedError)):
        return Refusal(400, str(error))
    if isinstance(error, ResourceError):
        return Refusal(503, str(error), code="out_of_resources", headers={"retry-after": "30"})
    if isinstance(error, HeteroError):
        return Refusal(500, "the model failed on this request; " + LOGGED, code="model_failed")
    return Refusal(500, "the server failed on this request; " + LOGGED, code="internal")
