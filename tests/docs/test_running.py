"""What the pages about running say of starting, refusing and stopping, with real engines on homes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.docs.markdown_blocks import ROOT, blocks_of
from tests.docs.stand import Stand, free_ports, new_home, reader_environment

RUNNING = ROOT / "docs" / "operations" / "running.md"
TROUBLESHOOTING = ROOT / "docs" / "operations" / "troubleshooting.md"


@pytest.fixture
def terminal() -> Iterator[Stand]:
    """A reader's terminal, with nothing running."""
    with ExitStack() as opened:
        home = opened.enter_context(new_home())
        engine_port, app_port = free_ports(2)
        made = Stand(home, engine_port, app_port, reader_environment(home, engine_port))
        yield made
        made.close()


def test_an_engine_in_earnest_starts_once_there_is_a_token_and_drains_at_sigterm(terminal: Stand) -> None:
    [command] = [block.text.strip() for block in blocks_of(RUNNING) if "server" in block.words]
    [make_token] = [block.text for block in blocks_of(RUNNING) if block.text.startswith("durable token create")]
    command = f"{command} --port {terminal.engine_port}"

    code, said = terminal.start(command).wait_end()
    assert code == 1
    assert_said(said, "There is no admin token yet, so nobody could use this engine.")
    made = terminal.shell(make_token)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("dat_")

    engine = terminal.start(command)
    engine.wait_line(lambda line: line.startswith("API") and terminal.engine_url in line)
    refused = terminal.shell("durable app list", DURABLE_TOKEN="dat_" + "x" * 43)
    assert refused.returncode == 1
    assert_said(refused.stderr, "The token is missing, unknown or revoked.")
    asked = terminal.shell("durable key create --app shop --env prod && durable app list", DURABLE_TOKEN=made.stdout.strip())
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.startswith("whsec_") and "shop\tprod" in asked.stdout
    assert engine.stop() == 0


def test_refusals_that_a_new_user_meets_are_the_sentences_of_the_page(terminal: Stand) -> None:
    write_app(terminal.home)
    # That it is mended without a restart is seen in the examples of the other pages, whose app starts before the engine.
    early = terminal.start(f"hypercorn --bind 127.0.0.1:{terminal.app_port} shop:asgi")
    nothing = terminal.shell("durable run list")
    assert_said(early.wait_line(lambda line: "durable dev" in line), "There is no signing key yet")
    early.stop()
    assert nothing.returncode == 2
    assert_said(nothing.stderr, "No admin token.")

    engine = terminal.start(f"durable dev --port {terminal.engine_port} --app-url http://127.0.0.1:{terminal.app_port}/")
    engine.wait_line(lambda line: line.startswith("API"))
    engine.wait_line(lambda line: "waiting for the app (" in line)
    no_workspace = terminal.shell("durable run list", DURABLE_ENV="")
    assert no_workspace.returncode == 2
    assert_said(no_workspace.stderr, "There is no workspace yet.")

    # Side by side: each takes a second or two to find out. With which code a web server ends is its own affair.
    served = f"hypercorn --bind 127.0.0.1:{terminal.app_port} shop:asgi"
    refused = {
        "Another engine": terminal.start("durable dev --port 0"),
        "Choose another --host or --port": terminal.start(
            f"durable dev --port {terminal.engine_port} --data-dir {terminal.home}/other/pgdata"
        ),
        "DURABLE_ENV is not set": terminal.start(served, DURABLE_ENV=""),
        "DURABLE_SIGNING_KEY is not set": terminal.start(served, DURABLE_ENV="acc"),
    }
    for sentence, process in refused.items():
        code, said = process.wait_end()
        assert_said(said, sentence)
        assert code == 1 or "hypercorn" in process.command

    for name in ("shop", "cart"):
        made = terminal.shell(f"durable key create --app {name} --env dev")
        assert made.returncode == 0, made.stderr
    several = terminal.shell("durable run list")
    assert several.returncode == 2
    assert_said(several.stderr, "Several workspaces fit")

    assert engine.stop() == 0
    away = terminal.shell("durable run list")
    assert away.returncode == 3
    assert_said(away.stderr, "No engine answers at")


def write_app(home: Path) -> None:
    (home / "shop.py").write_text(
        "import durable\n\n"
        'app = durable.App("shop")\n\n\n'
        '@app.function(trigger=durable.Event("nothing"))\n'
        "async def nothing(event, step):\n    return None\n\n\n"
        "asgi = app.asgi()\n"
    )


def assert_said(text: str, sentence: str) -> None:
    """The program said it, and troubleshooting has it as a heading."""
    assert sentence in text, text
    assert f"### `{sentence}" in TROUBLESHOOTING.read_text()
