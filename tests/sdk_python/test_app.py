"""Apps and functions as users write them: what is taken, what is refused at once, the manifest, the environment."""

import copy
import functools
import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

import durable
from durable import errors, replay_log
from durable.deployment import read_deployment
from durable.keys import read_settings
from durable.outgoing import events_message, start_message, sync_message
from durable.wire import Workspace
from durable.wire_codec import decode_line, encode
from protocol import messages
from protocol.signing import new_key

PROTOCOL = Path(__file__).parents[2] / "protocol"
NAMES = json.loads((PROTOCOL / "vectors" / "names.json").read_text("utf-8"))
OPS = json.loads((PROTOCOL / "vectors" / "ops.json").read_text("utf-8"))
WORKSPACE = Workspace("shop", "prod")
TRIGGER = durable.Event("user.created")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DURABLE_URL", "DURABLE_HOME", "DURABLE_DEPLOYMENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DURABLE_ENV", "prod")
    monkeypatch.setenv("DURABLE_SIGNING_KEY", new_key())


def validator(name: str) -> Draft202012Validator:
    every = {path.name: json.loads(path.read_text()) for path in (PROTOCOL / "schema").glob("*.json")}
    registry = Registry().with_resources((key, Resource.from_contents(each)) for key, each in every.items())
    return Draft202012Validator(every[name], registry=registry)


# Functions.


def test_a_function_is_called_like_its_handler() -> None:
    app = durable.App("shop")

    @app.function(trigger=TRIGGER)
    async def async_one(event: Any, step: Any) -> Any:
        return event

    @app.function(trigger=TRIGGER, id="another-id", name="Another name")
    def sync_one(event: Any, step: Any) -> Any:
        return step

    assert (async_one.id, async_one.name, async_one.is_async) == ("async_one", "async_one", True)
    assert (sync_one.id, sync_one.name, sync_one.is_async) == ("another-id", "Another name", False)
    assert sync_one(1, step=2) == 2 and app.functions == {"async_one": async_one, "another-id": sync_one}
    with pytest.raises(StopIteration):
        async_one(1, 2).send(None)


def test_partials_and_objects_may_be_handlers() -> None:
    async def with_more(more: str, event: Any, step: Any) -> str:
        return more

    class Caller:
        async def __call__(self, event: Any, step: Any) -> None: ...

    app = durable.App("shop")
    assert app.function(trigger=TRIGGER, id="partial")(functools.partial(with_more, "x")).is_async
    assert app.function(trigger=TRIGGER, id="object")(Caller()).is_async


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"id": "a b"}, "function id 'a b'"),
        ({"id": ""}, "function id ''"),
        ({"name": ""}, "`name`"),
        ({"retries": -1}, "`retries`"),
        ({"retries": 101}, "`retries`"),
        ({"retries": True}, "`retries`"),
        ({"retries": 1.5}, "`retries`"),
        ({"backoff": 5}, "`backoff`"),
        ({"backoff": durable.Backoff(factor=0.5)}, "`factor`"),
        ({"backoff": durable.Backoff(initial_seconds=-1)}, "`initial_seconds`"),
        ({"backoff": durable.Backoff(max_seconds=float("inf"))}, "`max_seconds`"),
        ({"concurrency": 2}, "`concurrency`"),
        ({"concurrency": [2]}, "`concurrency`"),
        ({"step_timeout": "5 minutes"}, "5 minutes"),
        ({"step_timeout": 0}, "`step_timeout`"),
        ({"trigger": None, "triggers": ["user.created"]}, "durable.Event"),
        ({"trigger": None, "triggers": [TRIGGER] * 11}, "11 triggers"),
    ],
)
def test_a_bad_option_is_refused_where_it_is_written(options: dict[str, Any], words: str) -> None:
    async def handler(event: Any, step: Any) -> None: ...

    with pytest.raises((TypeError, ValueError), match=words) as refused:
        durable.App("shop").function(**{"trigger": TRIGGER, **options})(handler)
    assert "'handler'" in str(refused.value)


def test_a_function_needs_a_trigger_and_not_both_forms() -> None:
    app = durable.App("shop")
    for options in ({}, {"trigger": TRIGGER, "triggers": [TRIGGER]}):
        with pytest.raises(ValueError, match="trigger"):
            app.function(**options)


def no_step(event: Any) -> None: ...
def too_many(event: Any, step: Any, more: Any) -> None: ...
def a_generator(event: Any, step: Any) -> Any:
    yield


async def an_async_generator(event: Any, step: Any) -> Any:
    yield


class AClass:
    def __init__(self, event: Any, step: Any) -> None: ...


@pytest.mark.parametrize("handler", [no_step, too_many, a_generator, an_async_generator, AClass, "text", None])
def test_what_is_no_handler_is_refused(handler: Any) -> None:
    with pytest.raises(TypeError, match="can not be defined"):
        durable.App("shop").function(trigger=TRIGGER, id="f")(handler)


def test_two_functions_of_one_id_are_refused() -> None:
    app = durable.App("shop")

    def one(event: Any, step: Any) -> None: ...

    function = app.function(trigger=TRIGGER)(one)
    with pytest.raises(ValueError, match="already"):
        app.function(trigger=TRIGGER)(one)
    with pytest.raises(TypeError, match="decorate it once"):
        app.function(trigger=TRIGGER, id="two")(function)


def texts(kind: str, verdict: str) -> list[str]:
    return [*NAMES[kind][verdict], *(text * times for text, times in NAMES[kind][f"{verdict}_repeat"])]


@pytest.mark.parametrize(
    ("kind", "use"),
    [
        ("app", durable.App),
        ("event_name", durable.Event),
        ("function_id", lambda text: durable.App("a").function(trigger=TRIGGER, id=text)(lambda event, step: None)),
        ("environment", lambda text: read_settings("shop", {"DURABLE_ENV": text, "DURABLE_SIGNING_KEY": new_key()})),
    ],
)
def test_names_are_taken_and_refused_as_the_vectors_say(kind: str, use: Any) -> None:
    for text in texts(kind, "accept"):
        use(text)
    for text in texts(kind, "refuse"):
        with pytest.raises((ValueError, durable.ConfigurationError)):
            use(text)


@pytest.mark.parametrize("bad", [0, -1, True, 1.5, "2", 2**31])
def test_a_concurrency_limit_is_a_count(bad: Any) -> None:
    with pytest.raises(ValueError, match="limit"):
        durable.Concurrency(limit=bad)
    for expression in ("", "  ", 7):
        with pytest.raises(ValueError, match="CEL"):
            durable.Concurrency(limit=1, key=expression)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="CEL"):
            durable.Event("a", if_=expression)  # type: ignore[arg-type]


# The manifest.


def full_app() -> durable.App:
    app = durable.App("shop")

    @app.function(
        triggers=[TRIGGER, durable.Event("order.paid", if_="event.data.amount > 100")],
        retries=0,
        backoff=durable.Backoff(initial_seconds=0.5, factor=1.5, max_seconds=60, jitter=False),
        concurrency=[durable.Concurrency(limit=2, key="tenantId"), durable.Concurrency(limit=10)],
        step_timeout="1h",
    )
    async def full(event: Any, step: Any) -> None: ...

    @app.function(trigger=TRIGGER, concurrency=durable.Concurrency(limit=1))
    def plain(event: Any, step: Any) -> None: ...

    return app


def test_the_manifest_is_what_the_schema_and_the_engine_want() -> None:
    raw = encode(full_app().manifest())
    validator("manifest.json").validate(json.loads(raw))
    manifest = messages.decode_manifest(raw)
    full, plain = manifest.functions
    assert [(trigger.event, trigger.if_) for trigger in full.triggers][1] == ("order.paid", "event.data.amount > 100")
    assert (full.retries, full.step_timeout_seconds, full.backoff.factor, full.backoff.jitter) == (0, 3600, 1.5, False)
    assert [(limit.limit, limit.key) for limit in full.concurrency] == [(2, "tenantId"), (10, None)]
    assert (plain.retries, plain.step_timeout_seconds) == (3, 900)
    assert manifest.protocol == [1] and manifest.max_body == 4 << 20
    offered = manifest.capabilities
    assert offered.checkpoint and offered.refs and offered.alive and offered.batch.max >= 100


def test_the_deployment_changes_with_the_code_and_with_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deployment_of(source: str) -> str:
        (tmp_path / "shop.py").write_text("import durable\napp = durable.App('shop')\n" + source)
        code = "import shop; from durable.deployment import read_deployment as read; print(read(shop.app.functions.values()))"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env=environ)
        return done.stdout.strip()

    import os

    environ = {**os.environ, "PYTHONPATH": str(Path(durable.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    one = "@app.function(trigger=durable.Event('a'))\ndef f(event, step): return 1\n"
    assert deployment_of(one) == deployment_of(one) != deployment_of(one.replace("1", "2"))
    monkeypatch.setenv("DURABLE_DEPLOYMENT", "v42")
    assert full_app().manifest().deployment == "v42"
    with pytest.raises(durable.ConfigurationError, match="256"):
        read_deployment([], {"DURABLE_DEPLOYMENT": "x" * 257})


def test_a_handler_without_a_file_has_a_deployment_too() -> None:
    def deployment_of(source: str) -> str:
        names: dict[str, Any] = {"__name__": "notebook"}
        exec(compile(source, "<notebook>", "exec"), names)
        app = durable.App("shop")
        return read_deployment([app.function(trigger=TRIGGER)(names["f"])], {})

    assert deployment_of("def f(event, step): return event") != deployment_of("def f(event, step): return step")


# Messages.


def test_outgoing_messages_are_what_the_schemas_and_the_engine_want() -> None:
    raw = events_message(WORKSPACE, [{"name": "a", "data": {"x": [1, 2.5, None]}, "id": "1"}, {"name": "ü ✓"}])
    validator("events.json").validate(json.loads(raw))
    first, second = messages.decode_events(raw).events
    assert (first.id, bytes(first.data)) == ("1", b'{"x":[1,2.5,null]}')
    assert isinstance(second.id, str) and bytes(second.data) == b"null"
    _, raw = start_message(WORKSPACE, "f", {"id": 1}, None)
    validator("start.json").validate(json.loads(raw))
    assert messages.decode_start(raw).function == "f"
    raw = sync_message(WORKSPACE, "https://shop.example/d", full_app().manifest())
    validator("sync.json").validate(json.loads(raw))


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([], "0 events"),
        ([{"name": "a"}] * 1001, "1001 events"),
        ({"name": "a"}, "a list"),
        ("a", "a list"),
        (["a"], "The event is"),
        ([{"data": 1}], "keys"),
        ([{"name": "a", "dta": 1}], "dta"),
        ([{"name": "a"}, {"name": ""}], "event name ''"),
        ([{"name": "durable.start"}], "only the engine"),
        ([{"name": "a", "id": ""}], "The id of the event 'a'"),
        ([{"name": "a", "id": "x" * 129}], "1–128"),
        ([{"name": "a", "id": 7}], "not 7"),
        ([{"name": "a"}, {"name": "b", "data": {"at": [object()]}}], r"The data of event 1 'b' at \['at'\]\[0\] is a object"),
        ([{"name": "a", "data": "x" * (1 << 20)}], "1,048,576 are allowed"),
    ],
)
def test_a_bad_event_is_refused_before_it_is_sent(events: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        events_message(WORKSPACE, events)


@pytest.mark.parametrize("case", OPS["accept"], ids=lambda case: case["name"])
def test_every_good_op_is_read_and_written_so_that_the_engine_takes_it(case: dict[str, Any]) -> None:
    line = {"type": "ended", "run_id": "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10", "generation": 1, "known": 0, "ops": case["ops"]}
    raw = encode(decode_line(json.dumps(line).encode()))
    if case["via"] in ("both", "end", "line"):
        assert isinstance(messages.decode_line(raw), messages.Ended)
    written = json.loads(raw)["ops"]
    for came, went in zip(case["ops"], written, strict=True):
        assert {key: value for key, value in went.items() if key in came and key != "until" and key != "started_at"} == {
            key: value for key, value in came.items() if key in went and key != "until" and key != "started_at"
        }


# The environment.


def test_importing_and_defining_needs_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DURABLE_ENV")
    monkeypatch.delenv("DURABLE_SIGNING_KEY")
    app = full_app()
    app.asgi()
    app.wsgi()
    with pytest.raises(durable.ConfigurationError, match=r"DURABLE_ENV is not set\. Set it to .* DURABLE_ENV=dev"):
        app.send_sync("a")


def test_the_settings_come_from_the_environment(tmp_path: Path) -> None:
    settings = read_settings("shop", {"DURABLE_ENV": "prod", "DURABLE_SIGNING_KEY": new_key()})
    assert (settings.url, str(settings.workspace), len(settings.keys)) == ("http://127.0.0.1:8288", "shop/prod", 1)
    assert "whsec" not in repr(settings) and str(settings.keys[0].secret) not in repr(settings)
    two = {"DURABLE_ENV": "prod", "DURABLE_SIGNING_KEY": f" {new_key()},{new_key()}\n", "DURABLE_URL": "https://e.example/base/"}
    assert (read_settings("shop", two).url, len(read_settings("shop", two).keys)) == ("https://e.example/base", 2)


def test_the_dev_key_is_read_in_dev_only_and_a_set_key_wins(tmp_path: Path) -> None:
    home = {"DURABLE_HOME": str(tmp_path)}
    with pytest.raises(durable.ConfigurationError, match=r"dev\.key does not exist\. Start `durable dev` first"):
        read_settings("shop", {"DURABLE_ENV": "dev", **home})
    key = new_key()
    (tmp_path / "dev.key").write_text(key + "\n")
    assert (
        read_settings("shop", {"DURABLE_ENV": "dev", **home}).keys[0]
        != read_settings("shop", {"DURABLE_ENV": "dev", "DURABLE_SIGNING_KEY": new_key(), **home}).keys[0]
    )
    with pytest.raises(durable.ConfigurationError, match="DURABLE_SIGNING_KEY is not set"):
        read_settings("shop", {"DURABLE_ENV": "prod", **home})
    (tmp_path / "dev.key").write_text("whsec_broken")
    with pytest.raises(durable.ConfigurationError, match=r"dev\.key holds no signing key") as refused:
        read_settings("shop", {"DURABLE_ENV": "dev", **home})
    assert "whsec_broken" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["localhost:8288", "ftp://x", "http://", "http://h:0", "http://h:x", "http://h/?a=1", "http://h/#x", "http://h /"]
)
def test_a_bad_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(durable.ConfigurationError, match="DURABLE_URL"):
        read_settings("shop", {"DURABLE_ENV": "prod", "DURABLE_SIGNING_KEY": new_key(), "DURABLE_URL": url})


# Errors and logs.


@pytest.mark.parametrize(
    "error",
    [
        durable.StepError("CardDeclined", "no", "declined", "charge"),
        durable.Refused("c", "m", "h", 409, "/p"),
        durable.RunFailed("r", "n", "m", "c"),
        durable.RunCancelled("r"),
    ],
)
def test_errors_survive_copies_and_pickles(error: durable.DurableError) -> None:
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301
        assert type(twin) is type(error) and str(twin) == str(error) and vars(twin) == vars(error)


def test_every_error_says_in_its_docstring_what_to_do() -> None:
    found = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, BaseException)]
    assert len(found) >= 14
    for each in found:
        assert each.__doc__ and len(each.__doc__) > 40
        assert each is durable.Parked or issubclass(each, durable.DurableError)
    assert not issubclass(durable.Parked, Exception)


def test_lines_are_logged_once_and_not_on_replay(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("shop.test")
    adapter = replay_log.replay_aware(logger, run_id="r1")
    filtered = replay_log.ReplayFilter()
    logger.addFilter(filtered)
    with caplog.at_level(logging.INFO, "shop.test"):
        token = replay_log.is_replaying.set(True)
        adapter.info("hidden")
        logger.info("hidden too")
        assert not adapter.isEnabledFor(logging.INFO)
        replay_log.is_replaying.reset(token)
        adapter.info("shown", extra={"more": 1})
    logger.removeFilter(filtered)
    [record] = caplog.records
    assert (record.message, record.run_id, record.more) == ("shown", "r1", 1)  # type: ignore[attr-defined]


def test_the_public_names_are_there() -> None:
    for name in durable.__all__:
        assert getattr(durable, name) is not None
