"""The `durable` client commands against the API behind a real socket: what they print, and their exit codes."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import pytest
import trio
from click.testing import CliRunner, Result
from rich.console import Console

from engine.cli import exit_codes
from engine.cli.commands import add_client_commands
from engine.cli.dev_files import read_or_create_dev_token
from engine.cli.trace_view import render_trace
from engine.nursery.http_server import serve_http
from engine.store.sql import Connection
from tests.api_under_test import Api, api, function, step_op

__all__ = ["api"]


@dataclass
class Cli:
    """The commands, with an engine to talk to."""

    api: Api
    url: str
    group: click.Group

    async def run(self, *args: str, stdin: str | None = None, **environment: str) -> Result:
        given = {"DURABLE_URL": self.url, "DURABLE_TOKEN": self.api.token, **environment}
        call = partial(CliRunner().invoke, self.group, list(args), input=stdin, env=given)
        result = await trio.to_thread.run_sync(call)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result


@pytest.fixture
async def cli(api: Api) -> AsyncIterator[Cli]:
    group = click.Group("durable")
    add_client_commands(group)
    closing = trio.Event()
    async with trio.open_nursery() as nursery:
        [bind] = await nursery.start(serve_http, api.app, "127.0.0.1", 0, closing)
        yield Cli(api, bind, group)
        closing.set()
        nursery.cancel_scope.cancel()


IN_SHOP = ("--app", "shop", "--env", "acc")


async def test_an_event_is_sent_and_its_run_is_listed_shown_and_cancelled(cli: Cli) -> None:
    await cli.api.sync(function("welcome"))
    sent = await cli.run("event", "send", "welcome.asked", '{"id": 1.50}', "--id", "e1", *IN_SHOP)
    assert sent.exit_code == exit_codes.OK and "event e1" in sent.output
    run_id = sent.output.split("run   ")[1].split()[0]
    assert "(sent before)" in (await cli.run("event", "send", "welcome.asked", '{"id": 1.50}', "--id", "e1", *IN_SHOP)).output
    assert "with another content" in (await cli.run("event", "send", "welcome.asked", "2", "--id", "e1", *IN_SHOP)).output
    listed = await cli.run("run", "list", *IN_SHOP)
    assert listed.output.splitlines()[1].split("\t")[:4] == [run_id, "welcome", "queued", "welcome.asked"]
    assert "number 1 in the lane" in (await cli.run("run", "show", run_id, *IN_SHOP)).output
    assert (await cli.run("run", "cancel", run_id, *IN_SHOP)).output == f"cancelled {run_id}\n"
    assert "cancelled" in (await cli.run("run", "list", "--status", "cancelled", *IN_SHOP)).output
    assert "1.50" in (await cli.run("event", "show", "e1", "-o", "json", *IN_SHOP)).output
    assert run_id in (await cli.run("event", "show", "e1", *IN_SHOP)).output


async def test_every_command_prints_json_when_asked(cli: Cli) -> None:
    await cli.api.sync(function("welcome"))
    await cli.api.send("welcome.asked")
    for args in (
        ("app", "list"),
        ("function", "list", *IN_SHOP),
        ("run", "list", *IN_SHOP),
        ("run", "start", "welcome", '{"a": 1}', *IN_SHOP),
        ("event", "list", *IN_SHOP),
        ("event", "send", "x", *IN_SHOP),
        ("key", "list", *IN_SHOP),
        ("key", "create", "--event", *IN_SHOP),
        ("engine", "tasks"),
        ("engine", "show"),
        ("audit",),
        ("version",),
    ):
        result = await cli.run(*args, "-o", "json")
        assert result.exit_code == 0, result.output
        assert isinstance(json.loads(result.output), dict), args


async def test_a_function_is_started_with_input_from_a_pipe(cli: Cli) -> None:
    await cli.api.sync(function("welcome"))
    started = await cli.run("run", "start", "welcome", "-", *IN_SHOP, stdin='{"n": [1, 2]}')
    shown = await cli.run("run", "show", started.output.strip(), "-o", "json", *IN_SHOP)
    assert json.loads(shown.output)["event"]["data"] == {"n": [1, 2]}


async def test_the_only_workspace_needs_no_name_and_several_are_listed(cli: Cli) -> None:
    result = await cli.run("run", "list")
    assert result.exit_code == exit_codes.USAGE and "other/acc" in result.output and "shop/acc" in result.output
    assert (await cli.run("run", "list", "--app", "shop")).exit_code == exit_codes.OK
    assert (await cli.run("run", "list", "--app", "none")).exit_code == exit_codes.USAGE


@pytest.mark.parametrize(
    ("args", "exit_code", "words"),
    [
        (("run", "show", "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10", *IN_SHOP), exit_codes.NOT_FOUND, "no run"),
        (("run", "list", "--app", "shop", "--env", "none"), exit_codes.NOT_FOUND, "no workspace shop/none"),
        (("run", "list", "--app", "../x", "--env", "none"), exit_codes.USAGE, "app name"),
        (("run", "show", "../../audit", *IN_SHOP), exit_codes.NOT_FOUND, "no"),
        (("run", "start", "nothing", *IN_SHOP), exit_codes.NOT_FOUND, "no function"),
        (("run", "start", "welcome", "{", *IN_SHOP), exit_codes.USAGE, "not JSON"),
        (("run", "start", "welcome", '{"a":1,"a":2}', *IN_SHOP), exit_codes.USAGE, "/a"),
        (("event", "send", "durable.x", *IN_SHOP), exit_codes.FAILED, "reserved_name"),
        (("run", "list", "--status", "dancing", *IN_SHOP), exit_codes.USAGE, "dancing"),
        (("key", "revoke", "zz", *IN_SHOP), exit_codes.NOT_FOUND, "no such live key"),
        (("key", "create"), exit_codes.USAGE, "--app and --env"),
        (("audit", "--url", "http://127.0.0.1:1"), exit_codes.UNREACHABLE, "durable dev"),
        (("audit", "--url", "ftp://x"), exit_codes.USAGE, "http://"),
        (("audit", "--token", "dat_wrong"), exit_codes.FAILED, "bad_token"),
        (("audit", "--token", "a\nb"), exit_codes.USAGE, "characters"),
    ],
)
async def test_what_goes_wrong_is_a_sentence_and_an_exit_code(
    cli: Cli, args: tuple[str, ...], exit_code: int, words: str
) -> None:
    await cli.api.sync(function("welcome"))
    result = await cli.run(*args)
    assert (result.exit_code, "Traceback" in result.output) == (exit_code, False), result.output
    assert words in result.output


async def test_without_a_token_it_says_how_to_get_one(cli: Cli, tmp_path: Path) -> None:
    result = await cli.run("audit", DURABLE_TOKEN="", DURABLE_HOME=str(tmp_path / "home"))
    assert result.exit_code == exit_codes.USAGE and "durable token create" in result.output


async def test_the_dev_token_is_used_on_this_machine_and_sent_nowhere_else(cli: Cli, tmp_path: Path) -> None:
    token = read_or_create_dev_token(tmp_path / "home")
    home = {"DURABLE_TOKEN": "", "DURABLE_HOME": str(tmp_path / "home")}
    assert "bad_token" in (await cli.run("audit", **home)).output
    assert token.startswith("dat_")
    elsewhere = await cli.run("audit", "--url", "http://192.0.2.1:8288", **home)
    assert elsewhere.exit_code == exit_codes.USAGE and "No admin token" in elsewhere.output


async def test_audit_ends_with_its_own_code_when_it_finds_something(cli: Cli) -> None:
    await cli.api.sync(function("welcome"))
    assert (await cli.run("audit")).output == "0 findings\n"
    await cli.api.send("welcome.asked")

    async def lose(conn: Connection) -> None:
        await conn.execute_script("DELETE FROM live_run")

    await cli.api.database.transact(lose)
    result = await cli.run("audit")
    assert result.exit_code == exit_codes.FINDINGS and "run_without_state" in result.output


async def test_a_started_run_that_fails_ends_the_waiting_command_with_1(cli: Cli) -> None:
    await cli.api.sync(function("welcome"))
    results: list[Result] = []

    async def start() -> None:
        results.append(await cli.run("run", "start", "welcome", "--id", "once", "--wait", "20s", *IN_SHOP))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        run_id = None
        with trio.fail_after(10):
            while run_id is None:
                runs = (await cli.api.person("GET", "/v1/apps/shop/acc/runs")).json["runs"]
                run_id = runs[0]["run_id"] if runs else None
                await trio.sleep(0.01)
        lease = await cli.api.lease(run_id)
        fail = {"op": "fail", "error": {"name": "Oops", "message": "\x1b[31mred\x07"}, "retriable": False}
        await cli.api.report(run_id, lease.generation, fail, ends=True)
    assert results[0].exit_code == exit_codes.FAILED
    assert "Oops: �[31mred�" in results[0].output and "\x1b" not in results[0].output


async def test_tokens_are_made_on_the_database_and_come_in_until_revoked(cli: Cli, postgres_dsn: str) -> None:
    made = await cli.run("token", "create", "--label", "ops", "-o", "json", DATABASE_URL=postgres_dsn)
    token = json.loads(made.output)
    assert (await cli.run("audit", "--token", token["token"])).exit_code == exit_codes.OK
    assert "ops" in (await cli.run("token", "list", DATABASE_URL=postgres_dsn)).output
    revoked = await cli.run("token", "revoke", token["token_id"], DATABASE_URL=postgres_dsn)
    assert revoked.exit_code == exit_codes.OK
    again = await cli.run("token", "revoke", token["token_id"], DATABASE_URL=postgres_dsn)
    assert again.exit_code == exit_codes.NOT_FOUND
    assert (await cli.run("token", "revoke", "zz", DATABASE_URL=postgres_dsn)).exit_code == exit_codes.USAGE


async def test_a_run_is_drawn_with_its_steps_times_and_failures(cli: Cli) -> None:
    await cli.api.sync(function("welcome"))
    run_id = await cli.api.send("welcome.asked")
    lease = await cli.api.lease(run_id)
    failed = {
        **step_op("charge"), "op": "step_error", "retriable": True,
        "error": {"name": "CardDeclined", "message": "no\nmoney"}, "retry_after_seconds": 60,
    }  # fmt: skip
    del failed["data"]
    await cli.api.report(run_id, lease.generation, step_op("load [bold]user", {"n": 1}, duration_seconds=0.002), failed)
    await cli.api.report(run_id, lease.generation, {"op": "sleep", "id": "nap", "seconds": 3600}, known=1, ends=True)
    output = (await cli.run("run", "show", run_id, *IN_SHOP)).output
    for words in (
        "welcome",
        "load [bold]user",
        "✓",
        "█",
        "nap  sleep",
        "retrying",
        "attempt 2 in 5",
        "CardDeclined: no money",
        "1 invocation",
    ):
        assert words in output, words
    assert "A failed step is tried again in" in output.replace("\n", " ")


def test_a_long_wait_does_not_press_the_rest_into_nothing() -> None:
    times = {"from_at": "2026-01-31T09:00:00Z", "app_seconds": 0.5, "waited_seconds": 0.0, "durable_seconds": 0.5}
    step = {"id": "a", "kind": "step", "status": "completed", "position": 1, "attempt": 1, "times": times}
    nap = {**step, "id": "nap", "kind": "sleep", "position": 2}
    nap["times"] = {**times, "app_seconds": 0.0, "waited_seconds": 86_400.0, "durable_seconds": 0.1}
    tail = {**times, "app_seconds": 0.0, "durable_seconds": 0.01}
    run = {
        "run_id": "0199", "function": "f", "status": "completed", "why": None, "event": None, "attempt": None, "output": {"a": 1},
        "created_at": "2026-01-31T09:00:00Z", "ended_at": "2026-02-01T09:00:02Z", "read_at": "2026-02-01T09:00:03Z", "error": None,
        "steps": [step, nap], "invocations": [], "tail": tail,
    }  # fmt: skip
    console = Console(width=120, file=io.StringIO())
    console.print(render_trace(run))
    assert isinstance(console.file, io.StringIO)
    drawn = console.file.getvalue()
    assert drawn.count("█") > 5 and "1d 0h in all" in drawn and 'output {"a": 1}' in drawn
