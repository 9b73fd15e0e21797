"""The live tree of the engine's tasks, for people: what runs under which nursery, and until when."""

from __future__ import annotations

from typing import Any

import trio


def task_tree(root: trio.lowlevel.Task) -> dict[str, Any]:
    """`{"name", "deadline_in_seconds", "nurseries": [[task, …], …]}` of the task and all below it."""
    return {
        "name": root.name,
        "nurseries": [
            {
                "deadline_in_seconds": _seconds_left(nursery.cancel_scope.deadline),
                "tasks": [task_tree(task) for task in sorted(nursery.child_tasks, key=lambda task: task.name)],
            }
            for nursery in root.child_nurseries
        ],
    }


def _seconds_left(deadline: float) -> float | None:
    return None if deadline == float("inf") else round(deadline - trio.current_time(), 3)
