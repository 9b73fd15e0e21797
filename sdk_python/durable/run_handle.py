"""A started run, as its starter holds it: its id, and its result when it has ended.

Asks the engine in long polls; owns no task and no connection.
"""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET

from durable.errors import ResultNotReady, RunCancelled, RunFailed
from durable.json_text import decode
from durable.wire import Result, ResultAnswer
from durable.wire_codec import WireFault, decode_error, decode_result_answer, encode

if TYPE_CHECKING:
    from durable.app import App

POLL_SECONDS_MAX: Final = 20.0


class RunHandle:
    """`is_duplicate`: the given id had been used, and this is the run that it started then."""

    def __init__(self, app: "App", run_id: str, function_id: str, *, is_duplicate: bool = False) -> None:
        self.run_id = run_id
        self.function_id = function_id
        self.is_duplicate = is_duplicate
        self._app = app

    def __repr__(self) -> str:
        return f"RunHandle(run_id={self.run_id!r}, function_id={self.function_id!r})"

    async def result(self, timeout: float | None = None) -> Any:
        """What the run returns, as JSON gives it back. Raises RunFailed, RunCancelled, and ResultNotReady (a
        TimeoutError) when it has not ended after `timeout` seconds; None waits without end.
        """
        for wait_seconds in self._polls(timeout):
            raw = await self._app.client.call("/v1/result", self._question(wait_seconds), "result")
            if (answer := self._ended(raw)) is not None:
                return self._value(answer)
        raise self._not_ready(timeout)

    def result_sync(self, timeout: float | None = None) -> Any:
        """`result` for plain code."""
        for wait_seconds in self._polls(timeout):
            raw = self._app.sync_client.call("/v1/result", self._question(wait_seconds), "result")
            if (answer := self._ended(raw)) is not None:
                return self._value(answer)
        raise self._not_ready(timeout)

    def _polls(self, timeout: float | None) -> Iterator[float]:
        """How long each question may wait. At least one is asked, also with a timeout of 0."""
        ends_at = float("inf") if timeout is None else time.monotonic() + timeout
        left_seconds = ends_at - time.monotonic()
        while True:
            yield max(0.0, min(left_seconds, POLL_SECONDS_MAX))
            left_seconds = ends_at - time.monotonic()
            if left_seconds <= 0:
                return

    def _question(self, wait_seconds: float) -> bytes:
        return encode(Result(self._app.settings().workspace, self.run_id, wait_seconds))

    def _ended(self, raw: bytes) -> ResultAnswer | None:
        answer = decode_result_answer(raw)
        if answer.run_id != self.run_id:
            raise WireFault(f"The engine answered for the run {answer.run_id} instead of {self.run_id}.")
        return answer if answer.status in ("completed", "failed", "cancelled") else None

    def _value(self, answer: ResultAnswer) -> Any:
        if answer.status == "cancelled":
            raise RunCancelled(self.run_id)
        if answer.status == "failed":
            if answer.error is UNSET:
                raise RunFailed(self.run_id, "Error", "The engine keeps no words of it.")
            words = decode_error(answer.error)
            raise RunFailed(self.run_id, words.name, words.message, words.code)
        return None if answer.output is UNSET else decode(answer.output)

    def _not_ready(self, timeout: float | None) -> ResultNotReady:
        return ResultNotReady(f"The run {self.run_id} has not ended after {timeout:g} s; it goes on. Ask again, or wait longer.")
