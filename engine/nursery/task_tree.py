"""The live tree of the engine's tasks, for people: what runs under which nursery, and until when."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import trio

_names: WeakKeyDictionary[trio.Nursery, str] = WeakKeyDictionary()


def name_nursery(nursery: trio.Nursery, name: str) -> None:
    """Give a nursery the name under which people see it."""
    _names[nursery] = name


def task_tree(root: trio.lowlevel.Task) -> dict[str, Any]:
    """`{"name", "nurseries": [{"name", "deadline_in_seconds", "tasks": [the same, …]}]}` of the task and all below it."""
    return {
        "name": root.name,
        "nurseries": [
            {
                "name": _names.get(nursery, "nursery"),
                "deadline_in_seconds": _seconds_left(nursery.cancel_scope.deadline),
                "tasks": [task_tree(task) for task in sorted(nursery.child_tasks, key=lambda task: task.name)],
            }
            for nursery in root.child_nurseries
        ],
    }


def _seconds_left(deadline: float) -> float | None:
    return None if deadline == float("inf") else round(deadline - trio.current_time(), 3)
