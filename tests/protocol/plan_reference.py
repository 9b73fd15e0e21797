"""A small model of SPEC section 7: what is planned when a handler of replays.json meets a memo.

It exists so that the vectors are proved consistent before ports rely on them. It runs no bodies and sends nothing.
"""

from collections import Counter, deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

KINDS = {"step": "step", "sleep": "sleep", "wait": "wait_for_event", "send": "send_events"}
Flow = Generator[Any, Any, Any]


class Raised(Exception):
    """An error inside of the handler."""

    def __init__(self, name: str, *, code: str | None = None, retriable: bool = True) -> None:
        super().__init__(name)
        self.name, self.code, self.retriable = name, code, retriable


class Returned(Exception):
    """The handler's return, on its way up."""


@dataclass
class Asked:
    user_id: str
    id: str
    action: dict[str, Any]
    task: "Task"
    is_open: bool = True


@dataclass
class Task:
    flow: Flow
    parent: "Join | None" = None
    is_over: bool = False


@dataclass
class Join:
    task: Task
    children: list[Task]
    needed: int
    is_over: bool = False


@dataclass
class Plan:
    case: dict[str, Any]
    counts: Counter[str] = field(default_factory=Counter)
    asked: list[Asked] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    ready: deque[tuple[Task, Any]] = field(default_factory=deque)
    delivered: list[str] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    end: dict[str, Any] | None = None


def plan(case: dict[str, Any]) -> dict[str, Any]:
    """`delivered`, `starts`, `reports` and `end` of the case."""
    state = Plan(case)
    root = Task(_handler(state, case["handler"]))
    state.ready.append((root, None))
    while state.end is None:
        while state.ready and state.end is None:
            _resume(state, root, *state.ready.popleft())
        if state.end is not None or not _deliver_next(state):
            break
    is_open = state.end is None
    return {
        "delivered": state.delivered,
        "starts": _starts(state) if is_open else [],
        "reports": _reports(state) if is_open else [],
        "end": state.end,
    }


def _handler(state: Plan, actions: list[dict[str, Any]]) -> Flow:
    try:
        yield from _actions(state, actions)
    except Returned as returned:
        return returned.args[0]
    return None


def _actions(state: Plan, actions: list[dict[str, Any]]) -> Flow:
    for action in actions:
        if "parallel" in action:
            yield ("join", action["parallel"], len(action["parallel"]))
        elif "race" in action:
            yield ("join", action["race"], 1)
        elif "repeat" in action:
            for _ in range(action["repeat"]):
                yield from _actions(state, action["do"])
        elif "try" in action:
            try:
                yield from _actions(state, action["try"])
            except Raised:
                yield from _actions(state, action["catch"])
        elif "raise" in action:
            raise Raised(action["raise"], retriable=action.get("retriable", True))
        elif "return" in action:
            what = action["return"]
            raise Returned(state.results[what["result_of"]] if "result_of" in what else what["value"])
        else:
            yield ("ask", action)


def _resume(state: Plan, root: Task, task: Task, outcome: Any) -> None:
    try:
        wish = task.flow.throw(outcome) if isinstance(outcome, Raised) else task.flow.send(outcome)
    except StopIteration as stop:
        _task_over(state, root, task, stop.value)
        return
    except Raised as raised:
        if task.parent is None:
            error = {"error_name": raised.name} | ({"code": raised.code} if raised.code else {})
            state.end = {"op": "fail", "retriable": raised.retriable, **error}
        else:
            _leave(state, task.parent)
            state.ready.append((task.parent.task, raised))
        return
    if wish[0] == "ask":
        _ask(state, task, wish[1])
    else:
        join = Join(task, [Task(_actions(state, branch)) for branch in wish[1]], wish[2])
        for child in join.children:
            child.parent = join
            state.ready.append((child, None))


def _task_over(state: Plan, root: Task, task: Task, value: Any) -> None:
    task.is_over = True
    if task is root:
        state.end = {"op": "complete", "output": value}
        return
    join = task.parent
    assert join is not None
    if not join.is_over and sum(child.is_over for child in join.children) == join.needed:
        _leave(state, join)
        state.ready.append((join.task, None))


def _leave(state: Plan, join: Join) -> None:
    """The open steps below the join are given up; those with a memo entry need no op for it."""
    join.is_over = True
    memo = {entry["id"] for entry in state.case["memo"]}
    for asked in state.asked:
        if asked.is_open and asked.task in join.children:
            asked.is_open = False
            if asked.id not in memo:
                state.abandoned.append(asked.id)


def _ask(state: Plan, task: Task, action: dict[str, Any]) -> None:
    kind = next(kind for kind in KINDS if kind in action)
    user_id = action[kind]
    if any(each.is_open and each.user_id == user_id for each in state.asked):
        state.ready.append((task, Raised("AmbiguousStepId", code="ambiguous_step_id")))
        return
    state.counts[user_id] += 1
    count = state.counts[user_id]
    asked = Asked(user_id, user_id if count == 1 else f"{user_id}#{count}", action, task)
    for entry in state.case["memo"]:
        if entry["id"] == asked.id and entry["kind"] != KINDS[kind]:
            state.ready.append((task, Raised("CodeMismatch", code="code_mismatch")))
            return
    state.asked.append(asked)


def _deliver_next(state: Plan) -> bool:
    """Deliver the first memo entry that was asked for and is not delivered yet."""
    wanted = {asked.id: asked for asked in state.asked if asked.is_open}
    for entry in sorted(state.case["memo"], key=lambda each: each["position"]):
        asked = wanted.get(entry["id"])
        if asked is None or entry.get("abandoned"):
            continue
        asked.is_open = False
        state.delivered.append(asked.id)
        state.results[asked.id] = entry.get("data")
        outcome = Raised(entry["error"]["name"]) if "error" in entry else entry["data"]
        state.ready.append((asked.task, outcome))
        return True
    return False


def _open(state: Plan) -> list[Asked]:
    memo = {entry["id"] for entry in state.case["memo"]}
    return [asked for asked in state.asked if asked.is_open and asked.id not in memo]


def _starts(state: Plan) -> list[str]:
    not_due = {retry["id"] for retry in state.case["retries"] if retry["in_seconds"] > 0}
    return [asked.id for asked in _open(state) if "step" in asked.action and asked.id not in not_due]


def _reports(state: Plan) -> list[dict[str, Any]]:
    known = {wait["id"] for wait in state.case["waiting"]}
    ops = []
    for asked in _open(state):
        kind = next(kind for kind in KINDS if kind in asked.action)
        if kind != "step" and asked.id not in known:
            fields = {key: value for key, value in asked.action.items() if key != kind}
            ops.append({"op": KINDS[kind], "id": asked.id, **fields})
    return ops + ([{"op": "abandon", "ids": state.abandoned}] if state.abandoned else [])
