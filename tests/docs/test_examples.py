"""Every example of the pages is executed: Python in the namespace of its page, functions with durable.testing, commands and
requests against a real engine with the pages' own apps.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import durable
import durable.testing
from tests.docs.drives import ANY, DRIVES, Drive
from tests.docs.markdown_blocks import ROOT, Block, blocks_of, pages
from tests.docs.run_page import execute, module_of
from tests.docs.same_shape import difference
from tests.docs.stand import Process, Stand, free_ports, open_stand

BLOCKS = [block for page in pages() for block in blocks_of(page)]
LANGUAGES = {"python", "sh", "json", "console", "ini", "python-django", "text", "sql", "nginx"}
# What is meant when a page does not say, as for a reader who has one app.
APP_OF_PAGE = {"README.md": "shop"}


def by_page(blocks: list[Block]) -> pytest.MarkDecorator:
    found = list(dict.fromkeys(block.page for block in blocks))
    return pytest.mark.parametrize("page", found, ids=[str(page.relative_to(ROOT)) for page in found])


@pytest.fixture(scope="session")
def stand() -> Iterator[Stand]:
    with open_stand() as opened:
        yield opened


def test_every_example_has_a_language_that_says_how_it_is_tested() -> None:
    for block in BLOCKS:
        assert block.language in LANGUAGES, f"{block.place}: ```{block.language}"


def test_the_readme_shows_the_function_that_make_demo_runs() -> None:
    example = (ROOT / "examples" / "onboarding" / "app.py").read_text()
    for name, shown in (("COOLDOWN", '"2d"'), ("APPROVAL_TIMEOUT", '"7d"')):
        assert f'{name} = os.environ.get("ONBOARDING_{name}", {shown})' in example
        example = re.sub(rf"(?<=[ =]){name}(?=\))", shown, example)
    readme = next(block.text for block in BLOCKS if block.page.name == "README.md" and "def onboarding" in block.text)
    assert _function(example, "onboarding") == _function(readme, "onboarding")


def _function(source: str, name: str) -> str:
    found = next(node for node in ast.parse(source).body if isinstance(node, ast.AsyncFunctionDef) and node.name == name)
    return ast.dump(found)


# Python -------------------------------------------------------------------------------------------------------------


@by_page([block for block in BLOCKS if block.is_definition])
def test_the_functions_of_a_page_do_what_it_says(page: Path) -> None:
    module = module_of(page)
    on_trio = {
        name
        for block in blocks_of(page)
        if "trio" in block.words
        for name in re.findall(r"^(?:async )?def (\w+)", block.text, re.MULTILINE)
    }
    drives = DRIVES.get(str(page.relative_to(ROOT)), {})
    found = {name: value for name, value in vars(module).items() if isinstance(value, durable.Function)}
    assert set(found) == set(drives), "every function of a page has a drive in drives.py, and no other"
    for name, function in found.items():
        for drive in drives[name]:
            anyio.run(_drive, function, drive, backend="trio" if name in on_trio else "asyncio")


async def _drive(function: durable.Function, drive: Drive) -> None:
    run = await durable.testing.start(function, drive.data, evaluate_if=drive.evaluate_if)
    for action in drive.actions:
        if isinstance(action, str):
            await run.advance(action)
        else:
            await run.send(*action)
    await run.advance_until_ended()
    assert run.status == drive.status, run
    assert drive.output is ANY or run.output == drive.output


@by_page([block for block in BLOCKS if block.is_definition and "def test_" in block.text])
def test_the_tests_of_a_page_pass(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of(page)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        if inspect.iscoroutinefunction(test):
            for backend in ("asyncio", "trio"):
                anyio.run(test, backend=backend)
        else:
            with monkeypatch.context() as patch:
                test(**({"monkeypatch": patch} if "monkeypatch" in inspect.signature(test).parameters else {}))


@by_page([block for block in BLOCKS if block.language == "python" and "engine" in block.words])
def test_python_that_meets_an_engine(page: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DURABLE_ENV", "DURABLE_URL", "HOME"):
        monkeypatch.setenv(name, stand.environment[name])
    module = module_of(page)
    adapted = [
        Block(block.page, block.line, block.language, block.words, stand.adapted(block.text))
        for block in blocks_of(page)
        if block.language == "python" and "engine" in block.words
    ]
    try:
        execute(adapted, module)
    finally:
        module.app.close()


# Shell --------------------------------------------------------------------------------------------------------------


@by_page([block for block in BLOCKS if block.language == "sh" and "server" not in block.words])
def test_the_commands_of_a_page(page: Path, stand: Stand, tmp_path: Path) -> None:
    blocks = blocks_of(page)
    commands = [block for block in blocks if block.language == "sh" and "server" not in block.words]
    script = "\n".join(
        # In one shell, so that variables last; each with an output of its own.
        f"echo {number} > {tmp_path}/at\n{{\n{stand.adapted(block.text)}}} > {tmp_path}/{number}.out"
        for number, block in enumerate(commands)
    )
    app = APP_OF_PAGE.get(str(page.relative_to(ROOT)))
    done = stand.shell(script, **({"DURABLE_APP": app} if app else {}))
    at = commands[int((tmp_path / "at").read_text())]
    assert done.returncode == 0, f"{at.place}\n{at.text}\n{done.stdout}\n{done.stderr}"
    for number, block in enumerate(commands):
        output = (tmp_path / f"{number}.out").read_text()
        follower = next((other for other in blocks if other.line > block.line), None)
        if follower is not None and follower.language == "json":
            assert difference(json.loads(follower.text), json.loads(output)) is None, f"{follower.place} is not like\n{output}"
        assert "curl" not in block.text or '"code"' not in output, f"{block.place} is refused:\n{output}"


@by_page([block for block in BLOCKS if block.language == "json"])
def test_json_is_json(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "json":
            assert json.loads(block.text) is not None, block.place


# Servers ------------------------------------------------------------------------------------------------------------

SERVERS = {
    "uvicorn": "uvicorn --port {port} site:asgi",
    "hypercorn": "hypercorn --bind 127.0.0.1:{port} site:asgi",
    "hypercorn on Trio": "hypercorn -k trio --bind 127.0.0.1:{port} site:asgi",
    "fastapi": "uvicorn --port {port} site:api",
    "quart": "hypercorn --bind 127.0.0.1:{port} site:quart_api",
    "flask": "flask --app site:flask_site run --port {port}",
}


@pytest.mark.parametrize("server", SERVERS)
def test_the_app_of_the_serving_page_is_served_by(
    server: str, stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs" / "guides" / "serving.md"
    blocks = [block for block in blocks_of(page) if block.is_definition]
    # Alone, or with the framework of one block.
    (tmp_path / "site.py").write_text("\n".join(block.text for block in blocks if block.word("serve") in (None, server)))
    [port] = free_ports(1)
    name = f"served-by-{server.split()[0]}-{len(server)}"
    source = (tmp_path / "site.py").read_text().replace('App("serving")', f'App("{name}")')
    (tmp_path / "served_site.py").write_text(source)
    path = "durable/" if server in ("fastapi", "quart", "flask") else ""
    started = stand.start(
        SERVERS[server].format(port=port).replace("site:", "served_site:"),
        cwd=tmp_path,
        PYTHONPATH=f"{tmp_path}:{stand.environment['PYTHONPATH']}",
    )
    try:
        _wait_listening(started, port)
        for variable in ("DURABLE_ENV", "DURABLE_URL", "HOME"):
            monkeypatch.setenv(variable, stand.environment[variable])
        namespace: dict[str, Any] = {}
        exec(compile(source, "served_site.py", "exec"), namespace)
        app: durable.App = namespace["app"]
        try:
            assert app.register_sync(f"http://127.0.0.1:{port}/{path}").functions == 1
            assert app.start_sync("ping").result_sync(timeout=20) == "pong"
        finally:
            app.close()
    finally:
        started.stop()


def _wait_listening(process: Process, port: int) -> None:
    process.wait_line(lambda line: f":{port}" in line)


def test_options_of_servers_that_the_pages_name_exist() -> None:
    text = (ROOT / "docs" / "guides" / "serving.md").read_text()
    assert "--timeout-graceful-shutdown" in text and "--graceful-timeout" in text
    for program, option in (("uvicorn", "--timeout-graceful-shutdown"), ("hypercorn", "--graceful-timeout")):
        done = subprocess.run([sys.executable, "-m", program, "--help"], capture_output=True, text=True, check=True)
        assert option in done.stdout
