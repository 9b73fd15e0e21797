"""The `durable` command as a person meets it: the first start, help, wrong usage, a second start, a used port, and the end."""

from __future__ import annotations

import http.client
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from engine.cli.commands import add_client_commands
from engine.cli.engine_commands import engine_group
from tests.system.processes import ROOT, free_ports, wait_until

DURABLE = str(Path(sys.executable).parent / "durable")
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 8.0

Environment = dict[str, str]


def run(environment: Environment, *words: str) -> subprocess.CompletedProcess[str]:
    """A command as a person types it, to its end."""
    return subprocess.run([DURABLE, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@contextmanager
def dev(environment: Environment, home: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """A `durable dev` that is ready: process, port, what it prints."""
    [port] = free_ports(1)
    log = home / f"dev-{port}.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [DURABLE, "dev", "--port", str(port), *words], cwd=ROOT, env=environment, stdout=out, stderr=out
        )
    try:
        wait_until("`durable dev` is ready", lambda: is_ready(process, port, log), START_SECONDS_MAX)
        yield process, port, log
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def is_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    assert process.poll() is None, f"it ended with {process.returncode}: {log.read_text()}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.mark.postgres
@pytest.mark.slow
def test_a_first_start_says_what_it_did_and_others_beside_it_are_refused_with_a_sentence(
    new_home: Path, new_environment: Environment
) -> None:
    with dev(new_environment, new_home) as (process, port, log):
        said = log.read_text()
        assert "Postgres   embedded, data in " in said and f"API        http://127.0.0.1:{port}" in said
        assert "--app-url" in said, "it says what comes next"
        assert "Traceback" not in said
        secrets = [new_home / ".durable" / name for name in ("dev.key", "dev.token")]
        for secret in secrets:
            assert stat.S_IMODE(secret.stat().st_mode) == 0o600
            assert secret.read_text().strip() not in said
        # The command finds this engine with nothing but the URL.
        here = {**new_environment, "DURABLE_URL": f"http://127.0.0.1:{port}"}
        assert run(here, "audit").stdout.strip() == "0 findings"
        assert run(here, "app", "list").returncode == 0

        [data_dir] = [line.partition("data in ")[2] for line in said.splitlines() if line.startswith("Postgres   embedded")]
        second = run(new_environment, "dev", "--port", str(free_ports(1)[0]))
        _require_sentence(second, 1, data_dir, str(process.pid), "--data-dir")
        used = run(new_environment, "dev", "--port", str(port), "--data-dir", str(new_home / "other"))
        _require_sentence(used, 1, "--port")
        assert is_ready(process, port, log), "the first is none the worse"

        began_at = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
        took = time.monotonic() - began_at
        assert took < STOP_SECONDS_MAX, f"with nothing in flight it took {took:.1f} s to end"
        assert "Traceback" not in log.read_text()
    gone = run(here, "run", "list")
    _require_sentence(gone, 3, f"http://127.0.0.1:{port}")


def _require_sentence(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """An exit code, and one line for a person; no traceback."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("durable: ") and last.rstrip().endswith((".", ")")), done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    for word in words:
        assert word in last, last


def test_a_port_in_use_by_another_program_is_refused_with_a_sentence(new_home: Path, new_environment: Environment) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        _require_sentence(run(new_environment, "dev", "--port", str(port)), 1, "--port")
    # Nothing of the refused start is left running: the same data can be used at once.
    with dev(new_environment, new_home):
        pass


def _commands() -> list[tuple[str, ...]]:
    """Every command and group of `durable`, by its words."""
    add_client_commands(engine_group)
    found: list[tuple[str, ...]] = []

    def walk(command: click.Command, words: tuple[str, ...]) -> None:
        found.append(words)
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                walk(child, (*words, name))

    walk(engine_group, ())
    return found


def test_every_command_has_help_that_says_what_it_does(new_environment: Environment) -> None:
    commands = _commands()
    assert len(commands) > 20, commands
    # In one process: starting Python for each of them would test Python.
    from click.testing import CliRunner

    for words in commands:
        done = CliRunner().invoke(engine_group, [*words, "--help"], prog_name="durable")
        assert done.exit_code == 0, (words, done.output)
        lines = done.output.splitlines()
        assert lines[0].startswith(f"Usage: durable {' '.join(words)}".rstrip()), lines[0]
        assert len(lines[2].strip()) > 15, f"`durable {' '.join(words)}` does not say what it does: {lines[2]!r}"
    top = run(new_environment, "--help")
    assert top.returncode == 0 and "dev" in top.stdout and "audit" in top.stdout
    assert run(new_environment, "run", "show", "--help").returncode == 0


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("devv",), "No such command"),
        (("dev", "--prot", "1"), "--port"),
        (("dev", "--port", "many"), "--port"),
        (("dev", "--app-url", "localhost:8000"), "http://"),
        (("dev", "--lease-seconds", "1"), "3"),
        (("run", "show"), "RUN_ID"),
        (("run", "list", "--status", "tired"), "queued"),
        (("event", "send"), "NAME"),
        (("event", "send", "a.b", "{n:1}", "--url", "http://127.0.0.1:1", "--token", "dat_x"), "JSON"),
        (("run", "list", "--url", "127.0.0.1:8288"), "http://"),
        (("run", "list"), "DURABLE_TOKEN"),
        (("token", "revoke", "zz"), "durable token list"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_usage_ends_with_2_and_says_what_to_do(new_environment: Environment, words: tuple[str, ...], hint: str) -> None:
    done = run(new_environment, *words)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert hint in done.stderr, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_durable_start_without_a_token_or_a_secret_says_what_is_missing(new_environment: Environment) -> None:
    nowhere = {**new_environment, "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing", "DURABLE_SECRET_KEY": "s" * 40}
    done = run(nowhere, "start", "--port", str(free_ports(1)[0]))
    assert done.returncode == 1 and "Traceback" not in done.stderr, (done.returncode, done.stderr)
    assert done.stderr.strip().splitlines()[-1].startswith("durable: "), done.stderr
