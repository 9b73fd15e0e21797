"""What client commands share: options, the connection to the engine, the workspace that is meant, and errors as sentences."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import urlsplit

import click

from engine.cli import exit_codes
from engine.cli.dev_files import read_dev_token
from engine.cli.printing import print_json, printable
from engine.store.embedded_postgres_error import EmbeddedPostgresError
from engine.store.private_file import PrivateFileRefused
from engine.transport.api_client import AnswerRefused, ApiAnswer, ApiClient, EngineUnreachable, path_of
from protocol import names

F = TypeVar("F", bound=Callable[..., Any])

URL_DEFAULT: Final = "http://127.0.0.1:8288"
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Session:
    """A connection to the engine, and what the options said."""

    api: ApiClient
    output: str
    app: str | None
    env: str | None

    def workspace(self) -> tuple[str, str]:
        """The app and the environment that are meant: those that were named, or the only ones that there are."""
        if self.app is not None and self.env is not None:
            for problem in (names.app_problem(self.app), names.environment_problem(self.env)):
                if problem is not None:
                    raise click.UsageError(problem)
            return self.app, self.env
        known = [(entry["app"], entry["env"]) for entry in self.api.get(path_of("apps")).json["apps"]]
        fitting = [(app, env) for app, env in known if self.app in (None, app) and self.env in (None, env)]
        if len(fitting) == 1:
            return fitting[0]
        if not known:
            raise click.UsageError("There is no workspace yet. Start an app, or name one with --app and --env.")
        choices = ", ".join(f"{app}/{env}" for app, env in known[:20])
        what = "Several workspaces fit" if fitting else "No workspace fits"
        raise click.UsageError(f"{what}. Name one with --app and --env: {choices}")

    def path(self, *parts: str) -> str:
        """A path inside of the workspace that is meant."""
        return path_of("apps", *self.workspace(), *parts)

    def show(self, answer: ApiAnswer, draw: Callable[[Any], None]) -> None:
        """Print the answer as it was asked for."""
        if self.output == "json":
            print_json(answer.text)
        else:
            draw(answer.json)


def client_command(*, has_workspace: bool = True) -> Callable[[F], F]:
    """Give a command the options of all client commands, and a Session as its first argument."""

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def run(output: str, url: str, token: str | None, app: str | None = None, env: str | None = None, **rest: Any) -> Any:
            with open_session(url, token, output, app, env) as session:
                return command(session, **rest)

        options = [
            click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print."),
            click.option("--url", envvar="DURABLE_URL", default=URL_DEFAULT, show_default=True, help="Where the engine is."),
            click.option("--token", envvar="DURABLE_TOKEN", help="Admin token; by default that of `durable dev`."),
        ]
        if has_workspace:
            options += [
                click.option("--app", envvar="DURABLE_APP", help="The app; may be left out when there is one."),
                click.option("--env", envvar="DURABLE_ENV", help="The environment; may be left out when there is one."),
            ]
        decorated: Any = run
        for option in reversed(options):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


@contextmanager
def open_session(url: str, token: str | None, output: str, app: str | None, env: str | None) -> Iterator[Session]:
    """A session; what goes wrong inside becomes a sentence and an exit code."""
    if not url.startswith(("http://", "https://")):
        raise click.UsageError(f"The address {url!r} of the engine must begin with http:// or https://.")
    try:
        # The token of this machine's dev engine is for this machine: no other address gets to see it.
        used_token = token or (read_dev_token() if urlsplit(url).hostname in LOOPBACK else None)
    except (PrivateFileRefused, EmbeddedPostgresError) as error:
        fail(str(error), exit_codes.FAILED)
    if used_token is None:
        raise click.UsageError(
            "No admin token. Set DURABLE_TOKEN or --token (`durable token create` makes one); "
            "`durable dev` makes one for this machine."
        )
    if not used_token.isascii() or not used_token.isprintable() or " " in used_token:
        raise click.UsageError("The admin token has characters that no token has. Copy the whole token.")
    with ApiClient(url, used_token) as api:
        try:
            yield Session(api, output, app, env)
        except EngineUnreachable as error:
            fail(str(error), exit_codes.UNREACHABLE)
        except AnswerRefused as error:
            hint = f" {error.hint}" if error.hint else ""
            fail(f"{error.message}{hint} ({error.code})", exit_codes.NOT_FOUND if error.status == 404 else exit_codes.FAILED)


def fail(sentence: str, exit_code: int) -> NoReturn:
    """End the command with a sentence on standard error."""
    click.echo(f"durable: {printable(sentence)}", err=True)
    sys.exit(exit_code)
