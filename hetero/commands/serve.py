"""`hetero serve`: a model over HTTP."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Option

from hetero.commands.flags import SamplingFlags, SharedRunFlags
from hetero.commands.model import DEMO, Model, path_of

if TYPE_CHECKING:
    from hetero.sampler import Sampling
    from hetero.server.settings import ServeSettings


@dataclass
class ServeFlags:
    """How `serve` listens; most are fields of hetero.server.settings.ServeSettings."""

    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Option(help="0 takes a free one.")] = 8000
    api_key_file: Annotated[
        str | None, Option(metavar="FILE", help="Keys, one a line, that open the server; also HETERO_API_KEY.")
    ] = None
    insecure: Annotated[bool, Option("--insecure", help="Listen beyond this machine without a key.")] = False
    max_token_gap: Annotated[
        float | None, Option(metavar="SECONDS", help="Between tokens while others' prompts are read [0.5; GPU: 0.2].")
    ] = None
    queue: Annotated[int, Option(help="Requests that may wait; more are refused (429).")] = 64
    cors_origin: Annotated[
        list[str] | None, Option(metavar="ORIGIN", help="Pages of this origin may call, as http://localhost:3000.")
    ] = None
    allowed_host: Annotated[
        list[str] | None, Option(metavar="NAME", help="A further name of this server, as clients' Host header says it.")
    ] = None
    alias: Annotated[list[str] | None, Option(metavar="NAME", help="A further name of the model; repeatable.")] = None
    log_format: Annotated[Literal["text", "json"], Option(help="Of the log on stderr.")] = "text"
    log_prompts: Annotated[bool, Option("--log-prompts", help="Write prompts into the log, too.")] = False

    def settings(self, sampling: "Sampling", notice: Callable[[str], None]) -> "ServeSettings":
        from hetero.server.settings import ServeSettings, read_keys

        return ServeSettings(
            host=self.host,
            port=self.port,
            keys=read_keys(self.api_key_file, notice=notice),
            insecure=self.insecure,
            max_token_gap=self.max_token_gap,
            queue=self.queue,
            cors_origins=tuple(self.cors_origin or ()),
            allowed_hosts=tuple(self.allowed_host or ()),
            aliases=tuple(self.alias or ()),
            log_format=self.log_format,
            log_prompts=self.log_prompts,
            sampling=sampling,
        )


def serve(model: Model = DEMO, *, flags: ServeFlags, sampling: SamplingFlags, run: SharedRunFlags) -> None:
    """Answer over HTTP. As OpenAI's and Anthropic's clients expect it, several of them at once; and a page at /.

    SIGTERM and Ctrl-C finish what is running; twice stops at once.
    """
    from hetero.server.run import serve
    from hetero.terminal import Screen

    settings = flags.settings(sampling.sampling(), Screen().note)
    name = DEMO if model == DEMO else None
    raise typer.Exit(serve(path_of(model), run.config(), settings, name))
