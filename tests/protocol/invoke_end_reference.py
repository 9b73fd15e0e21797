"""A small model of SPEC 4.3: the state of a run after the end of an invocation, for the cases of invoke_end.json.

It exists so that the vectors are proved consistent before the engine and ports rely on them; time stands still in it.
"""

from typing import Any


def run_after(before: dict[str, Any], known: int, ops: list[dict[str, Any]]) -> dict[str, Any]:
    """The run after `ops`, in the words of the vectors' `expect`."""
    run = {
        "attempt": before["attempt"],
        "memo": [],
        "open_waits": [wait["id"] for wait in before["open_waits"]],
        "retries": list(before["waiting_retries"]),
    }
    for op in ops:
        _apply(run, op, before)
    # Results of steps in this very message count as told, unless nothing else is left to wait for.
    told = [op["id"] for op in ops if op["op"] == "step"]
    news = before["position"] + len(run["memo"]) - len(told) > known or (
        bool(told) and not run["retries"] and not run["open_waits"]
    )
    return run | _next_state(run, ops[-1] if ops else {"op": None}, before, news)


def _apply(run: dict[str, Any], op: dict[str, Any], before: dict[str, Any]) -> None:
    match op["op"]:
        case "step" | "send_events":
            _commit(run, op["id"])
        case "step_error":
            retries = op.get("retries", before["retries"])
            if op["retriable"] and op["attempt"] <= retries:
                delay = op.get("retry_after_seconds", _delay(op["attempt"], op.get("backoff", before["backoff"])))
                run["retries"].append({"id": op["id"], "attempt": op["attempt"] + 1, "in_seconds": delay})
            else:
                _commit(run, op["id"])
        case "sleep" | "wait_for_event":
            if op["id"] not in run["open_waits"]:
                run["open_waits"].append(op["id"])
        case "abandon":
            run["open_waits"] = [each for each in run["open_waits"] if each not in op["ids"]]
            run["retries"] = [each for each in run["retries"] if each["id"] not in op["ids"]]


def _commit(run: dict[str, Any], step_id: str) -> None:
    run["memo"].append(step_id)
    run["attempt"] = 1


def _next_state(run: dict[str, Any], last: dict[str, Any], before: dict[str, Any], news: bool) -> dict[str, Any]:
    match last["op"]:
        case "complete":
            return {"state": "completed", "open_waits": [], "retries": []}
        case "fail":
            return _failed_attempt(run, before, last["retriable"], last.get("retry_after_seconds"))
        case "yield":
            return {"state": "ready", "due_in_seconds": 0}
        case "unknown_function":
            return {"state": "ready"}
    if news:
        return {"state": "ready", "due_in_seconds": 0}
    if run["retries"]:
        return {"state": "ready", "due_in_seconds": min(retry["in_seconds"] for retry in run["retries"])}
    if run["open_waits"]:
        return {"state": "waiting"}
    return {"code": "nothing_planned"} | _failed_attempt(run, before, True, None)


def _failed_attempt(
    run: dict[str, Any], before: dict[str, Any], retriable: bool, retry_after_seconds: float | None
) -> dict[str, Any]:
    if not retriable or run["attempt"] > before["retries"]:
        return {"state": "failed", "open_waits": [], "retries": []}
    delay = retry_after_seconds or _delay(run["attempt"], before["backoff"])
    return {"state": "ready", "due_in_seconds": delay, "attempt": run["attempt"] + 1}


def _delay(attempt: int, backoff: dict[str, Any]) -> float:
    return float(min(backoff["initial_seconds"] * backoff["factor"] ** (attempt - 1), backoff["max_seconds"]))
