"""An app that answers with anything but a reply: the run pays an attempt or waits, the others go on, and the engine stays well."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.system.checker import assert_sound
from tests.system.processes import wait_until
from tests.system.runs import ended_as, invocations_of, output_of, start_run
from tests.system.system import System, http_status, open_system

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

# What the reply means for the run: the outcome of its invocation, and a word of the cause.
TRIES = {
    "html": ("call_died", "signature"),
    "html_as_lines": ("call_died", "signature"),
    "truncated_line": ("call_died", "no_end"),
    "wrong_signature": ("call_died", "signature"),
    "reply_to_another_request": ("call_died", "signature"),
    "another_runs_reply": ("call_died", "foreign_reply"),
    "another_generation": ("call_died", "foreign_reply"),
    "nothing": ("call_died", "no_end"),
    "invalid_utf8": ("call_died", "bad_reply"),
    "deep_json": ("call_died", "bad_reply"),
    "unknown_type": ("call_died", "bad_reply"),
    "claims_gzip": ("call_died", "no_end"),
    "server_error": ("call_died", "500"),
}
ENDLESS = {"endless_line": "bad_reply", "endless_body": "bad_reply", "endless_error": "bad_reply"}
NOT_DELIVERED = {"redirect": "redirect", "unauthorized": "401", "bad_gateway": "502"}
# None of them says how long to wait, as far as this protocol goes; none may become a wait of minutes.
ODD_RETRY_AFTER = ("-5", "1e9", "0x10", "soon", "1.5", "99999999999999999999", "Wed, 21 Oct 2099 07:28:00 GMT", "")
STALL_SECONDS_MAX = 3.0


@pytest.fixture(scope="module")
def raw_system() -> Iterator[System]:
    with open_system(app="tests.system.raw_app:asgi", lease_seconds=3) as opened:
        yield opened


def test_a_reply_that_is_none_costs_one_attempt_and_names_the_cause(raw_system: System) -> None:
    runs = {reply: _start(raw_system, reply) for reply in TRIES}
    assert_sound(raw_system)
    for reply, run_id in runs.items():
        outcome, word = TRIES[reply]
        died, completed = invocations_of(raw_system, run_id)
        assert (died["outcome"], died["attempt"]) == (outcome, 1), f"{reply}: {died}"
        assert word in died["detail"], f"{reply}: {died}"
        assert (completed["outcome"], completed["attempt"]) == ("completed", 2), f"{reply}: {completed}"
        assert output_of(raw_system, run_id) == '"ok"', reply


def test_an_endless_reply_is_cut_off_and_the_engine_answers_meanwhile(raw_system: System) -> None:
    memory_before = raw_system.engine().memory_bytes()
    for turn in range(3):
        with _Gaps(raw_system.engine_ports[0]) as gaps:
            runs = {reply: _start(raw_system, reply, f"{reply}-{turn}") for reply in ENDLESS}
            assert_sound(raw_system)
        for reply, run_id in runs.items():
            died, *_ = invocations_of(raw_system, run_id)
            assert died["outcome"] == "call_died" and ENDLESS[reply] in died["detail"], f"{reply}: {died}"
            assert ended_as(raw_system, run_id) == "completed", reply
        assert gaps.longest_seconds < STALL_SECONDS_MAX, f"the engine did not answer for {gaps.longest_seconds:.1f} s"
    # Each is read up to 64 MiB, and Python may keep what it had at once. Nine replies kept would be three times as much.
    assert raw_system.engine().memory_bytes() < memory_before + len(ENDLESS) * 72 * 2**20


def test_an_app_that_does_not_take_the_call_costs_no_attempt(raw_system: System) -> None:
    for reply, word in NOT_DELIVERED.items():
        run_id = _start(raw_system, reply)
        assert_sound(raw_system)
        first, *_, completed = invocations_of(raw_system, run_id)
        assert first["outcome"] == "undelivered" and word in first["detail"], f"{reply}: {first}"
        assert (completed["outcome"], completed["attempt"]) == ("completed", 1), f"{reply}: {completed}"


def test_an_odd_retry_after_is_no_wait_of_minutes_and_a_plain_one_is_kept(raw_system: System) -> None:
    for odd in ODD_RETRY_AFTER:
        run_id = _start(raw_system, f"429 {odd}")
        wait_until(f"the run has ended in spite of retry-after {odd!r}", lambda run_id=run_id: ended_as(raw_system, run_id), 10)  # type: ignore[misc]
        assert [row["attempt"] for row in invocations_of(raw_system, run_id)] == [1, 1]
    run_id = _start(raw_system, "429 2")
    assert_sound(raw_system)
    first, second = [line.at for line in raw_system.witness() if line.run_id == run_id]
    assert second - first >= 2


@pytest.mark.parametrize("reply", ["html", "redirect", "server_error", "endless_body", "endless_error", "unknown_type"])
def test_a_manifest_that_is_none_leaves_the_engine_and_the_functions_alone(raw_system: System, reply: str) -> None:
    engine = raw_system.engine()
    wrong = raw_system.place / "manifest_reply"
    asked = raw_system.place / "manifest_asked"
    asked.write_text("")
    wrong.write_text(reply)
    try:
        # Asked again, it has dealt with the first.
        wait_until("it has asked twice", lambda: not engine.is_alive() or asked.read_text().count("asked") >= 2)
        assert engine.is_alive(), "an app's reply must not end the engine"
        run_id = _start(raw_system, "html", f"while-the-manifest-is-{reply}")
        assert_sound(raw_system)
        assert ended_as(raw_system, run_id) == "completed"
    finally:
        wrong.unlink()
        if not engine.is_alive():
            raw_system.start_engine()


class _Gaps:
    """Asks the engine whether it lives, again and again; the longest time without an answer."""

    def __init__(self, port: int) -> None:
        self.longest_seconds = 0.0
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Gaps:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        answered_at = time.monotonic()
        while not self._stop.wait(0.05):
            if http_status(self._port, "/healthz") == 200:
                now = time.monotonic()
                self.longest_seconds = max(self.longest_seconds, now - answered_at)
                answered_at = now


def _start(system: System, reply: str, event_id: str | None = None) -> str:
    return start_run(system, "raw.wanted", {"reply": reply, "times": 1}, event_id or f"wrong-{reply}")
