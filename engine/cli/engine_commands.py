"""`durable dev` and `durable start`: run an engine. Options in, `Settings` out; what goes wrong is one sentence and an exit code."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from engine import __version__

F = TypeVar("F", bound=Callable[..., Any])

EXIT_REFUSED = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="durable")
def engine_group() -> None:
    """Durable runs ordinary functions whose steps survive crashes, deploys, retries and long waits."""


def _engine_options(command: F) -> F:
    for option in (
        click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
        click.option("--port", default=8288, show_default=True, type=click.IntRange(0, 65_535),
                     help="Port to listen on; 0 takes a free one."),
        click.option("--data-dir", type=click.Path(path_type=Path), help="Where the embedded Postgres keeps its data."),
        click.option("--lease-seconds", default=30.0, show_default=True, envvar="DURABLE_LEASE_SECONDS",
                     type=click.FloatRange(3, 3600), help="How long a run is an engine's without a sign of life."),
        click.option("--drain-seconds", default=30.0, show_default=True, envvar="DURABLE_DRAIN_SECONDS",
                     type=click.FloatRange(0, 86_400), help="How long SIGTERM waits for runs to end."),
        click.option("--runs-in-flight", default=1024, show_default=True, envvar="DURABLE_RUNS_IN_FLIGHT",
                     type=click.IntRange(1, 10_000), help="Invocations that this engine has open at once; one app gets half."),
    ):  # fmt: skip
        command = option(command)
    return command


@engine_group.command()
@_engine_options
@click.option("--app-url", "app_urls", multiple=True, metavar="URL", help="Where an app serves; may be given several times.")
def dev(**options: Any) -> None:
    """Run an engine on this machine for development: embedded Postgres, environment `dev`, keys made for you."""
    from engine.cli.dev_files import read_or_create_dev_key, read_or_create_dev_token
    from engine.main import Settings

    urls = options.pop("app_urls")
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise click.UsageError(f"--app-url {url!r} must begin with http:// or https://, such as http://127.0.0.1:8000/")
    limits, rest = _limits(options)
    _run(
        lambda: Settings(
            mode="dev",
            database_url=None,
            app_urls=urls,
            limits=limits,
            dev_key=read_or_create_dev_key(),
            dev_token=read_or_create_dev_token(),
            **rest,
        )
    )


@engine_group.command()
@_engine_options
def start(**options: Any) -> None:
    """Run an engine for real: DATABASE_URL or the embedded Postgres, keys per workspace, an admin token."""
    from engine.main import Settings

    limits, rest = _limits(options)
    networks = _allowed_networks(os.environ.get("DURABLE_ALLOWED_NETWORKS", ""))
    _run(
        lambda: Settings(
            mode="start",
            database_url=os.environ.get("DATABASE_URL") or None,
            limits=limits,
            allowed_networks=networks,
            **rest,
        )
    )


def _allowed_networks(text: str) -> list[str]:
    """The networks that an operator lists, such as `10.0.0.0/8,192.168.1.7/32`."""
    networks = [part.strip() for part in text.split(",") if part.strip()]
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise click.UsageError(
                f"DURABLE_ALLOWED_NETWORKS: {error}. Write networks as 10.0.0.0/8, with commas between."
            ) from None
    return networks


def _limits(options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from engine.nursery.context import Limits

    limits = Limits(options.pop("lease_seconds"), options.pop("drain_seconds"), options.pop("runs_in_flight"))
    return limits, options


def _run(settings: Callable[[], Any]) -> None:
    """Run the engine; a refusal that a person can mend is its sentence, not a traceback."""
    from engine.main import run

    try:
        trio.run(run, settings(), _say, strict_exception_groups=True)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BaseException as error:
        sentence = refusal_sentence(error)
        if sentence is None:
            raise
        click.echo(f"durable: {sentence}", err=True)
        raise SystemExit(EXIT_REFUSED) from None


def _say(text: str) -> None:
    click.echo(text)


def refusal_sentence(error: BaseException) -> str | None:
    """The sentence of an error that the operator can mend; None for a fault of the engine."""
    if isinstance(error, BaseExceptionGroup):
        sentences = [refusal_sentence(inner) for inner in error.exceptions]
        return None if None in sentences else "; ".join(dict.fromkeys(filter(None, sentences)))
    if isinstance(error, socket.gaierror):
        return f"The --host can not be resolved: {error.strerror}."
    if isinstance(error, OSError) and error.errno in (13, 98, 99):
        return f"{error.strerror or error}. Choose another --host or --port, or end what uses this one."
    return str(error) if isinstance(getattr(error, "code", None), str) else None
