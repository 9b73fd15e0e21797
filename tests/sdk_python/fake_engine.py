"""A small honest engine for tests of the SDK over HTTP: it speaks the protocol, keeps memos, and hands runs over again and again.

It checks every byte that the SDK sends with the engine's own decoders and signatures (package `protocol`), so a message that the
real engine would refuse fails here too. It is simple where the SDK can not see it: one thread a run, everything in memory, no limits.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import ThreadingHTTPServer
from typing import Any

import httpx
import msgspec

from protocol import messages, signing
from protocol.manifest import Workspace
from tests.sdk_python.fake_http import Handler, lines_of
from tests.sdk_python.fake_run import FakeRun, Json

KEY_TEXT = "whsec_hn4ssE9aBNy9WSUBpej+nOqvylAlVibKc2wTgEJTC6Q="
LINES_TYPE = "application/vnd.durable.lines"
WAIT_SECONDS_MAX = 20.0


class FakeEngine:
    """`with FakeEngine("shop", "prod") as engine:` serves at `engine.url`; tell it where the app is by `app_url`."""

    def __init__(self, app: str = "shop", env: str = "prod", *, lease_seconds: float = 30.0, retry_seconds: float = 0.05) -> None:
        self.workspace = Workspace(app, env)
        self.keys = [signing.Key.parse(KEY_TEXT)]
        self.app_url: str | None = None
        self.triggers: dict[str, list[str]] = {}
        self.lease_seconds = lease_seconds
        self.retry_seconds = retry_seconds
        self.runs: dict[str, FakeRun] = {}
        self.events: dict[str, Json] = {}
        self.starts: dict[str, str] = {}
        self.requests: list[str] = []
        self.faults: list[str] = []
        # Polls of `/v1/alive` in their order, how many of them are open, and what fetches and stores of values asked for.
        self.polls: list[messages.Alive] = []
        self.open_poll_count = 0
        self.fetches: list[list[str]] = []
        self.stored: dict[str, Any] = {}
        # Memo values of this many bytes and more travel by reference.
        self.ref_bytes_min: int | None = None
        self.value_bytes_max = 4 << 20
        # Answers to give instead of the true ones, taken from the front: (status, headers), or an action on (status, headers, body).
        self.disturb: list[Callable[[int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]]] = []
        self._seen_ids: set[str] = set()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"engine": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeEngine":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join(WAIT_SECONDS_MAX)
        if exc[0] is None:
            assert not self.faults, self.faults

    # What tests do.

    def create_run(self, function: str, event: Json) -> FakeRun:
        """Create a run, and hand it over as often as it takes."""
        run = FakeRun(str(uuid.uuid4()), function, {"received_at": instant(), **event})
        with self._changed:
            self.runs[run.id] = run
        if self.app_url is not None:
            self.drive(run)
        return run

    def drive(self, run: FakeRun) -> None:
        thread = threading.Thread(target=self._drive, args=(run,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait_until(self, condition: Callable[[], bool], *, seconds: float = WAIT_SECONDS_MAX) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, seconds), f"not reached; runs: {self.runs}, faults: {self.faults}"

    def wait_for_end(self, run: FakeRun) -> FakeRun:
        self.wait_until(lambda: run.has_ended or bool(self.faults))
        assert not self.faults, self.faults
        return run

    def cancel(self, run: FakeRun) -> None:
        with self._changed:
            run.status = "cancelled"
            self._changed.notify_all()

    def post_event(self, name: str, data: Any = None) -> None:
        with self._changed:
            self._take_event({"id": str(uuid.uuid4()), "name": name, "data": data})

    def ask(self, message: Json, **changes: Any) -> httpx.Response:
        """One signed call to the app, whole. `changes`: see `signed_headers`; `body` sends other bytes than those of `message`."""
        assert self.app_url is not None
        body = changes.pop("body", None) or json.dumps(message).encode()
        headers = self.signed_headers(body, **changes)
        return httpx.post(self.app_url, content=body, headers=headers, timeout=WAIT_SECONDS_MAX, trust_env=False)

    def signed_headers(
        self,
        body: bytes,
        *,
        message_id: str | None = None,
        age_seconds: int = 0,
        workspace: str | None = None,
        keys: list[signing.Key] | None = None,
    ) -> dict[str, str]:
        request_id = message_id or signing.new_message_id()
        sent_at = int(time.time()) - age_seconds
        return {
            "content-type": "application/json",
            "durable-workspace": str(self.workspace) if workspace is None else workspace,
            "webhook-id": request_id,
            "webhook-timestamp": str(sent_at),
            "webhook-signature": signing.sign(keys or self.keys, request_id, sent_at, body),
        }

    def verify_reply(self, response: httpx.Response, request_id: str) -> bytes:
        assert response.headers["webhook-id"] == signing.reply_id(request_id)
        headers = [response.headers.get(name) for name in ("webhook-id", "webhook-timestamp", "webhook-signature")]
        signing.verify(self.keys, headers[0], headers[1], headers[2], response.content, time.time())
        return response.content

    def read_manifest(self, *, star: bool = False) -> messages.Manifest:
        app = "*" if star else self.workspace.app
        request_id = signing.new_message_id()
        response = self.ask(
            {"type": "manifest", "workspace": {"app": app, "env": self.workspace.env}},
            message_id=request_id,
            workspace=f"{app}/{self.workspace.env}",
        )
        assert response.status_code == 200, response.text
        manifest = messages.decode_manifest(self.verify_reply(response, request_id))
        self.triggers = {function.id: [trigger.event for trigger in function.triggers] for function in manifest.functions}
        return manifest

    def invoke_message(self, *runs: FakeRun) -> Json:
        return {"type": "invoke", "workspace": {"app": self.workspace.app, "env": self.workspace.env},
                "invocations": [self._invocation(run) for run in runs]}  # fmt: skip

    # Handing over.

    def _drive(self, run: FakeRun) -> None:
        while not self._stopping.is_set():
            with self._changed:
                if run.has_ended:
                    return
                due = self._fire_due(run)
                if not run.is_ready or run.is_leased:
                    self._changed.wait(max(0.0, min(due - time.monotonic(), 0.5)))
                    continue
                run.is_leased, run.is_ready, run.status = True, False, "running"
                run.generation += 1
                body = json.dumps(self.invoke_message(run)).encode()
            try:
                self.invoke(body)
            except Exception as error:
                self.fault(f"invoke of {run.function}: {error!r}")
                return

    def invoke(self, body: bytes) -> None:
        """One call, its lines applied as they come. A connection that breaks leaves the rest to checkpoints."""
        assert self.app_url is not None
        request_id = signing.new_message_id()
        headers = self.signed_headers(body, message_id=request_id)
        with httpx.Client(trust_env=False, timeout=30.0) as client:
            with client.stream("POST", self.app_url, content=body, headers=headers) as response:
                assert response.status_code == 200, (response.status_code, response.read())
                assert response.headers["content-type"] == LINES_TYPE
                assert response.headers["cache-control"] == "no-transform"
                assert "content-encoding" not in response.headers
                for line in lines_of(response):
                    self._take_line(signing.verify_line(self.keys, request_id, line, time.time()))

    def _take_line(self, text: bytes) -> None:
        line = messages.decode_line(text)
        if isinstance(line, messages.Started):
            return
        assert isinstance(line, messages.Ended), line
        with self._changed:
            run = self.runs[line.run_id]
            if line.generation == run.generation and run.is_leased and not run.has_ended:
                self._apply(run, line.ops)
                self._end(run, line.ops, line.known, "reply")
            elif not line.ops:
                run.ends.append("nothing said")
                self._changed.notify_all()

    def _invocation(self, run: FakeRun) -> Json:
        now = time.monotonic()
        return {
            "run_id": run.id,
            "generation": run.generation,
            "attempt": run.attempt,
            "function": run.function,
            "event": run.event,
            "steps": [self._on_the_wire(run, entry) for entry in run.memo],
            "retries": [
                {"id": id, "attempt": attempt, "in_seconds": max(0.0, due - now)} for id, (attempt, due) in run.retries.items()
            ],
            "waiting": [{"id": id, "kind": wait["kind"]} for id, wait in run.waits.items()],
            "lease_seconds": self.lease_seconds,
        }

    def _fire_due(self, run: FakeRun) -> float:
        """Resolve what is due; the next instant at which something is."""
        now = time.monotonic()
        for step_id, wait in list(run.waits.items()):
            if wait["due"] <= now:
                run.remember(step_id, wait["kind"], data=None)
                run.is_ready = True
        if any(due <= now for _, due in run.retries.values()):
            run.is_ready = True
        return min([wait["due"] for wait in run.waits.values()] + [due for _, due in run.retries.values()], default=now + 1)

    # What invocations report.

    def take_checkpoint(self, raw: bytes) -> Json:
        message, refused = messages.decode_checkpoint(raw)
        assert not refused, refused
        with self._changed:
            return {"type": "checkpoint", "entries": [self._take_entry(entry) for entry in message.entries]}

    def _take_entry(self, entry: messages.CheckpointEntry) -> Json:
        run = self.runs[entry.run_id]
        answer: Json = {"run_id": entry.run_id, "generation": entry.generation}
        if run.status == "cancelled":
            return {**answer, "status": "cancelled"}
        if run.has_ended or entry.generation != run.generation or not run.is_leased:
            return {**answer, "status": "stale"}
        self._apply(run, entry.ops)
        self._fire_due(run)
        now = time.monotonic()
        known_here = {op.id for op in entry.ops if isinstance(op, messages.Step)}
        resolved = [
            {key: value for key, value in each.items() if key != "data" or each["id"] not in known_here}
            for each in run.memo
            if each["position"] > entry.known
        ]
        if entry.ends:
            self._end(run, entry.ops, entry.known, "checkpoint")
        self._changed.notify_all()
        retries = [
            {"id": id, "attempt": attempt, "in_seconds": max(0.0, due - now)} for id, (attempt, due) in run.retries.items()
        ]
        return {
            **answer,
            "status": "ok",
            "lease_seconds": self.lease_seconds,
            "resolved": resolved,
            "retries": retries,
            "abandoned": [],
        }

    def _apply(self, run: FakeRun, ops: list[messages.Op]) -> None:
        now = time.monotonic()
        for op in ops:
            match op:
                case messages.Step():
                    data = self.stored[op.ref] if isinstance(op.ref, str) else _value(op.data)
                    run.remember(op.id, "step", data=data)
                case messages.StepError():
                    if op.retriable and op.attempt <= (3 if op.retries is None else op.retries):
                        run.retries[op.id] = (op.attempt + 1, now + self.retry_seconds)
                    else:
                        run.remember(op.id, "step", error=_value(op.error))
                case messages.Sleep():
                    assert op.seconds is not None
                    run.waits.setdefault(op.id, {"kind": "sleep", "due": now + op.seconds})
                case messages.WaitForEvent():
                    wait = {"kind": "wait_for_event", "due": now + op.timeout_seconds, "event": op.event, "match": op.match or {}}
                    run.waits.setdefault(op.id, wait)
                case messages.SendEvents():
                    if run.find(op.id) is None:
                        events = [{"id": str(uuid.uuid4()), "name": e.name, "data": _value(e.data)} for e in op.events]
                        for event in events:
                            self._take_event(event)
                        run.remember(op.id, "send_events", data={"ids": [event["id"] for event in events]})
                case messages.Abandon():
                    for step_id in op.ids:
                        run.waits.pop(step_id, None)
                        run.retries.pop(step_id, None)
                case messages.Complete():
                    run.status, run.output = "completed", _value(op.output)
                case messages.Fail():
                    run.error = _value(op.error)
                    if op.retriable and run.attempt <= 3:
                        run.attempt += 1
                        run.is_ready = True
                    else:
                        run.status = "failed"

    def _end(self, run: FakeRun, ops: list[messages.Op], known: int, way: str) -> None:
        run.is_leased = False
        run.ends.append(way)
        if not run.has_ended:
            words = {type(op).__name__ for op in ops}
            if "Yield" in words or len(run.memo) > known:
                run.is_ready = True
            elif not run.is_ready and not run.retries and not run.waits and "UnknownFunction" not in words:
                self.faults.append(f"nothing_planned: {run.function} {ops}")
            if not run.is_ready:
                run.status = "waiting"
        self._changed.notify_all()

    def _on_the_wire(self, run: FakeRun, entry: Json) -> Json:
        if self.ref_bytes_min is None or "data" not in entry:
            return entry
        size_bytes = len(json.dumps(entry["data"]))
        if size_bytes < self.ref_bytes_min:
            return entry
        rest = {key: value for key, value in entry.items() if key != "data"}
        return {**rest, "ref": f"m:{run.id}:{entry['position']}", "bytes": size_bytes}

    # Leases and values.

    def take_alive(self, raw: bytes) -> Json:
        message = messages.decode_alive(raw)
        with self._changed:
            self.polls.append(message)
            place = len(self.polls)
            self.open_poll_count += 1
            self._changed.notify_all()

            def is_over() -> bool:
                newer = any(poll.process == message.process for poll in self.polls[place:])
                return newer or self._stopping.is_set() or any(self._news_of(run) for run in message.runs)

            self._changed.wait_for(is_over, message.wait_seconds)
            self.open_poll_count -= 1
            self._changed.notify_all()
            return {"type": "alive", "runs": [self._alive_answer(run) for run in message.runs]}

    def _news_of(self, asked: messages.AliveRun) -> Json:
        run = self.runs[asked.run_id]
        if run.status == "cancelled":
            return {"status": "cancelled"}
        if asked.generation != run.generation:
            return {"status": "stale"}
        resolved = [entry for entry in run.memo if entry["position"] > asked.known and entry["kind"] != "step"]
        return {"resolved": resolved} if resolved else {}

    def _alive_answer(self, asked: messages.AliveRun) -> Json:
        answer = {"run_id": asked.run_id, "generation": asked.generation, "status": "ok"}
        news = self._news_of(asked)
        return {**answer, **({} if "status" in news else {"lease_seconds": self.lease_seconds}), **news}

    def take_values(self, raw: bytes) -> Json:
        message = messages.decode_values(raw)
        run = self.runs[message.run_id]
        with self._changed:
            if message.store:
                refs = [f"v:{uuid.uuid4()}" for _ in message.store]
                self.stored.update({ref: _value(data) for ref, data in zip(refs, message.store, strict=True)})
                return {"type": "values", "refs": refs}
            self.fetches.append(list(message.fetch))
            memo = {f"m:{run.id}:{entry['position']}": entry["data"] for entry in run.memo}
            values: list[Json] = []
            size_bytes = 0
            for ref in message.fetch:
                size_bytes += len(json.dumps(memo[ref]))
                if values and size_bytes > self.value_bytes_max:
                    break
                values.append({"ref": ref, "data": memo[ref]})
            return {"type": "values", "values": values}

    # Events, starts, results.

    def _take_event(self, event: Json) -> Json:
        """Wake waits and create runs; the answer for this event. Under the lock."""
        if event["id"] in self.events:
            known = self.events[event["id"]]
            return {**known["answer"], "duplicate": True, **({} if known["event"] == event else {"conflict": True})}
        received = {**event, "received_at": instant()}
        for run in self.runs.values():
            for step_id, wait in list(run.waits.items()):
                if wait.get("event") == event["name"] and all(
                    (event["data"] or {}).get(path) == value for path, value in wait["match"].items()
                ):
                    run.remember(step_id, "wait_for_event", data=received)
                    run.is_ready = True
        functions = [function for function, names in self.triggers.items() if event["name"] in names]
        runs = [{"run_id": self.create_run(function, received).id, "function": function} for function in functions]
        answer = {"id": event["id"], "runs": runs}
        self.events[event["id"]] = {"event": event, "answer": answer}
        self._changed.notify_all()
        return answer

    def take_events(self, raw: bytes) -> Json:
        message = messages.decode_events(raw)
        events = [{"id": event.id, "name": event.name, "data": _value(event.data)} for event in message.events]
        with self._changed:
            return {"type": "events", "events": [self._take_event(event) for event in events]}

    def take_start(self, raw: bytes) -> Json:
        message = messages.decode_start(raw)
        with self._changed:
            if isinstance(message.id, str) and message.id in self.starts:
                return {"type": "start", "run_id": self.starts[message.id], "duplicate": True}
            event = {"id": str(uuid.uuid4()), "name": "durable.start", "data": _value(message.input)}
            run = self.create_run(message.function, event)
            if isinstance(message.id, str):
                self.starts[message.id] = run.id
            return {"type": "start", "run_id": run.id, "duplicate": False}

    def take_result(self, raw: bytes) -> Json:
        message = messages.decode_result(raw)
        with self._changed:
            run = self.runs[message.run_id]
            self._changed.wait_for(lambda: run.has_ended or self._stopping.is_set(), message.wait_seconds)
            answer: Json = {"type": "result", "run_id": run.id, "status": run.status}
            if run.status == "completed":
                answer["output"] = run.output
            if run.status == "failed":
                answer["error"] = run.error
            return answer

    def take_sync(self, raw: bytes) -> Json:
        message = messages.decode_sync(raw)
        return {"type": "sync", "functions": len(message.manifest.functions), "changed": True}

    # HTTP.

    def answer(self, method: str, path: str, headers: Any, raw: bytes) -> tuple[int, dict[str, str], bytes]:
        request_id, sent_at = headers.get("webhook-id"), headers.get("webhook-timestamp")
        self.requests.append(path)
        try:
            signing.verify(self.keys, request_id, sent_at, headers.get("webhook-signature"), raw, time.time())
            if request_id in self._seen_ids or headers.get("durable-workspace") != str(self.workspace):
                raise signing.SignatureError("replayed", "The id was seen before, or the workspace is another.")
        except signing.SignatureError as error:
            words = {"code": "bad_signature", "message": str(error), "hint": "Check DURABLE_SIGNING_KEY."}
            return 401, {}, json.dumps(words).encode()
        self._seen_ids.add(request_id)
        routes = {
            ("POST", "/v1/checkpoint"): self.take_checkpoint,
            ("POST", "/v1/alive"): self.take_alive,
            ("POST", "/v1/values"): self.take_values,
            ("POST", "/v1/events"): self.take_events,
            ("POST", "/v1/start"): self.take_start,
            ("POST", "/v1/result"): self.take_result,
            ("PUT", "/v1/sync"): self.take_sync,
        }
        status, answer = 200, b""
        try:
            answer = json.dumps(routes[method, path](raw)).encode()
        except messages.MessageRefused as refused:
            self.fault(f"{path}: {refused.code} {refused.message}")
            status, answer = 400, json.dumps({"code": refused.code, "message": refused.message, "place": refused.place}).encode()
        reply_id, now = signing.reply_id(request_id), int(time.time())
        signed = {
            "webhook-id": reply_id,
            "webhook-timestamp": str(now),
            "webhook-signature": signing.sign(self.keys, reply_id, now, answer),
        }
        return status, signed, answer

    def fault(self, words: str) -> None:
        with self._changed:
            if not self._stopping.is_set():
                self.faults.append(words)
            self._changed.notify_all()


def _value(payload: msgspec.Raw) -> Any:
    return json.loads(bytes(payload))


def instant() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@contextmanager
def environment_of(engine: FakeEngine, monkeypatch: Any) -> Iterator[FakeEngine]:
    """The environment in which an app finds this engine."""
    monkeypatch.setenv("DURABLE_URL", engine.url)
    monkeypatch.setenv("DURABLE_ENV", engine.workspace.env)
    monkeypatch.setenv("DURABLE_SIGNING_KEY", KEY_TEXT)
    with engine:
        yield engine
