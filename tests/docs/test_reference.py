"""The reference pages say what the code is: commands, routes, codes, variables, names and signatures, in both directions."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

import durable
import durable.testing
from engine.api.refusals import STATUS_OF_CODE
from engine.api.server import ROUTES
from engine.cli import exit_codes
from engine.cli.commands import add_client_commands
from engine.cli.engine_commands import engine_group
from tests.docs.markdown_blocks import ROOT, blocks_of, pages

REFERENCE = ROOT / "docs" / "reference"
COMMON_OPTIONS = {"--output", "--url", "--token", "--app", "--env"}


def sections(page: Path, level: str = "###") -> dict[str, str]:
    """The text below each heading of a level, by heading."""
    found: dict[str, str] = {}
    heading = ""
    for line in page.read_text().splitlines():
        if re.match(r"#+ ", line) and len(line.split()[0]) <= len(level):
            heading = line.removeprefix(level).strip() if line.startswith(f"{level} ") else ""
            found.setdefault(heading, "")
        else:
            found[heading] = found.get(heading, "") + line + "\n"
    found.pop("", None)
    return found


# Command line -------------------------------------------------------------------------------------------------------


def commands() -> dict[str, click.Command]:
    group = click.Group("durable", commands=dict(engine_group.commands))
    add_client_commands(group)

    def walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                yield from walk(child, f"{path} {name}")
        else:
            yield path, command

    return dict(walk(group, "durable"))


def test_every_command_is_in_the_reference_with_its_arguments_and_options() -> None:
    documented = {heading.strip("`"): text for heading, text in sections(REFERENCE / "cli.md").items()}
    expected = {}
    for path, command in commands().items():
        arguments = [
            str(each.make_metavar(click.Context(command))) for each in command.params if isinstance(each, click.Argument)
        ]
        expected[" ".join([path, *arguments])] = command
    assert set(documented) == set(expected)
    for heading, command in expected.items():
        options = {max(each.opts, key=len) for each in command.params if isinstance(each, click.Option)}
        is_client = "--url" in options
        shown = set(re.findall(r"--[a-z][a-z-]+", "\n".join(re.findall(r"^\| .*", documented[heading], re.MULTILINE))))
        assert shown == (options - COMMON_OPTIONS if is_client else options), heading
        if is_client:
            workspace = {"--app", "--env"} <= options
            assert workspace == (not heading.startswith(("durable app list", "durable engine", "durable audit"))), heading


def test_defaults_of_the_engines_options_are_those_of_the_code() -> None:
    documented = {heading.strip("`"): text for heading, text in sections(REFERENCE / "cli.md").items()}
    for name in ("durable dev", "durable start"):
        for option in commands()[name].params:
            if isinstance(option, click.Option) and isinstance(option.default, str | int | float) and not option.is_flag:
                row = next(line for line in documented[name].splitlines() if f"`{option.opts[0]}`" in line)
                assert f"`{option.default:g}`" in row if isinstance(option.default, int | float) else option.default in row, row


def test_exit_codes_are_those_of_the_code() -> None:
    table = {int(code) for code in re.findall(r"^\| (\d+) ", (REFERENCE / "cli.md").read_text(), re.MULTILINE)}
    assert table - {130} == {value for name, value in vars(exit_codes).items() if name.isupper()}


# API ----------------------------------------------------------------------------------------------------------------


def test_every_route_is_in_the_reference_and_no_other() -> None:
    assert {heading.strip("`") for heading in sections(REFERENCE / "api.md")} == {
        f"{route.method} {route.path}" for route in ROUTES
    }


def test_the_table_of_refusals_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `([a-z0-9_]+)` \| (\d+) \| (.+) \|$", (REFERENCE / "api.md").read_text(), re.MULTILINE)
    assert {code: int(status) for code, status, _ in rows} == STATUS_OF_CODE
    assert all(len(meaning) > 5 for _, _, meaning in rows)


def test_messages_of_apps_fit_their_schemas() -> None:
    folder = ROOT / "protocol" / "schema"
    schemas = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    registry: Any = Registry().with_resources((name, Resource.from_contents(schema)) for name, schema in schemas.items())
    checked = set()
    for block in blocks_of(REFERENCE / "api.md"):
        name = block.word("schema")
        if name is not None:
            Draft202012Validator(schemas[f"{name}.json"], registry=registry).validate(json.loads(block.text))
            checked.add(name)
    assert {"events", "start", "result", "checkpoint", "sync", "refusal"} <= checked


# Configuration ------------------------------------------------------------------------------------------------------

_VARIABLE = re.compile(r"""["'](DURABLE_[A-Z_]+|DATABASE_URL)["']""")


def test_every_variable_of_the_code_is_in_the_reference_and_no_other() -> None:
    sources = [*(ROOT / "engine").rglob("*.py"), *(ROOT / "sdk_python" / "durable").rglob("*.py")]
    used = {name for source in sources for name in _VARIABLE.findall(source.read_text())}
    documented = set(re.findall(r"^\| `([A-Z_]+)`", (REFERENCE / "configuration.md").read_text(), re.MULTILINE))
    assert documented == used


def test_every_read_of_the_environment_names_its_variable() -> None:
    """A variable under a name that is put together would escape the test above."""
    reads = re.compile(r"(?:os\.environ|\benviron|\benvironment)(?:\.get\(|\[)(.{1,30})")
    for source in [*(ROOT / "engine").rglob("*.py"), *(ROOT / "sdk_python" / "durable").rglob("*.py")]:
        for argument in reads.findall(source.read_text()):
            # `environ` is also what WSGI calls its request.
            assert argument.startswith(('"', "'")), f"{source}: {argument}"


# Python SDK ---------------------------------------------------------------------------------------------------------

SDK = REFERENCE / "python-sdk.md"
# Between the parts of the SDK, though they have public names.
INTERNAL = {"to_wire", "config", "filter"}


def test_every_public_name_is_in_the_reference() -> None:
    text = SDK.read_text()
    for name in durable.__all__:
        assert re.search(rf"(^### `{name}`$)|(^\| `{name}[`(])|(`{name}` is the)", text, re.MULTILINE), name
    headings = {heading.strip("`") for heading in sections(SDK)} - {"durable.testing"}
    assert headings <= set(durable.__all__)


def _errors() -> str:
    return SDK.read_text().partition("## Errors")[2].partition("\n## ")[0]


def _shown_signatures() -> list[tuple[str, str]]:
    found = []
    for heading, text in sections(SDK).items():
        owner = heading.strip("`")
        for name, arguments in re.findall(r"(?:^\| |^)`(\w+)\(([^`]*)\)`", text, re.MULTILINE):
            found.append((name if name in durable.__all__ else f"{owner}.{name}", arguments))
    for name, arguments in re.findall(r"^\| `(\w+)\(([^`]*)\)`", _errors(), re.MULTILINE):
        found.append((name, arguments))
    return found


@pytest.mark.parametrize(("name", "arguments"), _shown_signatures())
def test_a_signature_is_that_of_the_code(name: str, arguments: str) -> None:
    target: Any = durable
    for part in name.removeprefix("durable.").split("."):
        target = getattr(target, part)
    # A lambda is the shortest way to read a signature.
    shown = inspect.signature(eval(f"lambda {arguments}: None"))  # noqa: S307 (our own page)
    real = inspect.signature(target)
    assert _words(shown) == _words(real)


def test_every_method_of_the_public_classes_is_in_the_reference() -> None:
    shown = {name for name, _ in _shown_signatures()}
    for owner in (durable.App, durable.Step, durable.SyncStep, durable.RunHandle):
        for name, member in vars(owner).items():
            if name.startswith("_") or name in INTERNAL:
                continue
            if inspect.isfunction(member):
                assert f"{owner.__name__}.{name}" in shown
            elif isinstance(member, property):
                assert f"`{name}`" in sections(SDK)[f"`{owner.__name__}`"]
    for name in ("start", "start_sync"):
        assert f"durable.testing.{name}" in shown


def test_codes_of_errors_are_those_of_the_code() -> None:
    rows = dict(re.findall(r"^\| `(\w+)[^`]*` \|\s*([^|]*?)\s*\|", _errors(), re.MULTILINE))
    for name in durable.__all__:
        error = getattr(durable, name)
        if inspect.isclass(error) and issubclass(error, BaseException):
            code = vars(error).get("code")
            # Some take the code of what they tell of: theirs is an attribute of each error, not of the class.
            assert (f"`{code}`" in rows[name]) if isinstance(code, str) else name in rows, name


def test_what_a_test_run_shows_is_on_the_testing_page() -> None:
    text = (ROOT / "docs" / "guides" / "testing.md").read_text()
    for owner in (durable.testing.Run, *durable.testing.Run.__mro__[1:2]):
        for name, member in vars(owner).items():
            # A test run stands in for the sender, too; that half of it is not for whoever writes a test.
            is_sender = name in ("submit", "submit_soon")
            if not name.startswith("_") and not is_sender and (inspect.isfunction(member) or isinstance(member, property)):
                assert re.search(rf"`{name}[`(]", text) or name == "settle", name


def _words(signature: inspect.Signature) -> list[tuple[str, Any, Any]]:
    return [(each.name, each.kind, each.default) for each in signature.parameters.values() if each.name != "self"]


# Troubleshooting ----------------------------------------------------------------------------------------------------


def test_every_sentence_of_troubleshooting_is_one_of_the_code() -> None:
    sources = [*(ROOT / "engine").rglob("*.py"), *(ROOT / "sdk_python" / "durable").rglob("*.py")]
    # Long sentences are written as several texts in the code.
    code = "\n".join(re.sub(r"""["']\s*\n\s*f?["']""", "", source.read_text()) for source in sources)
    sentences = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "operations" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(sentences) > 25
    assert [sentence for sentence in sentences if sentence not in code] == []


# Links --------------------------------------------------------------------------------------------------------------


def test_every_link_leads_somewhere() -> None:
    for page in [*pages(), ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("https://", "http://")):
                continue
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f"{page.relative_to(ROOT)}: {target}"
            if anchor:
                assert anchor in {_anchor(heading) for heading in re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)}, (
                    f"{page.relative_to(ROOT)}: {target}"
                )


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
