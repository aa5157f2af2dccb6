"""The ASGI application: paths, and what wraps them."""

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from hetero.server import endpoints, generation
from hetero.server.gate import Gate
from hetero.server.metrics import Metrics
from hetero.server.page_files import PAGE, show
from hetero.server.service import Service
from hetero.server.settings import ServeSettings


def create_app(service: Service, settings: ServeSettings) -> Gate:
    """Answers before the model is there, too: then /health says "loading"."""
    routes = [
        Route("/health", endpoints.health),
        Route("/metrics", endpoints.metrics),
        Route("/panel", endpoints.show_panel),
        Route("/openapi.json", endpoints.show_openapi),
        Route("/v1/models", endpoints.models),
        Route("/v1/models/{name:path}", endpoints.model),
        Route("/v1/chat/completions", generation.chat_completions, methods=["POST"]),
        Route("/v1/completions", generation.completions, methods=["POST"]),
        Route("/v1/responses", generation.responses, methods=["POST"]),
        Route("/v1/responses/input_tokens", generation.input_tokens, methods=["POST"]),
        Route("/v1/messages", generation.messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", generation.count_tokens, methods=["POST"]),
        Route("/tokenize", endpoints.tokenize, methods=["POST"]),
        Route("/detokenize", endpoints.detokenize, methods=["POST"]),
        *(Route(path, show(file)) for path, file in PAGE.items()),
    ]
    app = Routes(routes=routes)
    app.router.redirect_slashes = False
    app.state.service, app.state.metrics = service, Metrics()
    return Gate(app, settings, page=tuple(PAGE), observe=app.state.metrics.observe)


class Routes(Starlette):
    """Whatever goes wrong inside is the gate's affair."""

    def build_middleware_stack(self) -> ASGIApp:
        return self.router
