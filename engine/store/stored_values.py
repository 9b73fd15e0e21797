"""Values that travel by reference: those that an app stored ahead of the step that has them, and those of a run's memo.

A reference is good for one run of one workspace; for any other it is unknown. A stored value becomes the data of its step when that is
committed, so the memo itself holds no references. What no step took is pruned after a day.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

import msgspec
from msgspec import UNSET, Raw

from engine.core.outcome import Reported
from engine.store.crash_points import crash_point
from engine.store.memo_entries import memo_position
from engine.store.sql import Connection, Sql
from protocol.ops import Op, Step

if TYPE_CHECKING:
    from engine.store.apply_outcomes import RunReport

STORED_REF: Final = "v:"

FIND_RUN_FOR_VALUES = Sql("find_run_for_values", "SELECT 1 FROM run WHERE run_id = $run_id AND workspace_id = $workspace_id")
# A run that has ended takes no more steps: its values need no room.
STORE_VALUES = Sql(
    "store_values",
    """
INSERT INTO stored_value (value_id, workspace_id, run_id, data)
SELECT u.value_id, live_run.workspace_id, live_run.run_id, u.data
  FROM live_run, unnest($value_ids::uuid[], $data::text[]) AS u (value_id, data)
 WHERE live_run.run_id = $run_id AND live_run.workspace_id = $workspace_id""",
)
# Sizes are added up before any value is read: what does not fit stays where it is.
READ_VALUES = Sql(
    "read_values",
    """
WITH found AS (
  SELECT u.ordinal, u.ref, coalesce(step.data, stored_value.data) AS data,
         coalesce(octet_length(step.data), octet_length(stored_value.data)) AS bytes
    FROM unnest($refs::text[], $positions::int[], $value_ids::uuid[]) WITH ORDINALITY AS u (ref, position, value_id, ordinal)
    LEFT JOIN step ON step.run_id = $run_id AND step.position = u.position
    LEFT JOIN stored_value ON stored_value.value_id = u.value_id AND stored_value.run_id = $run_id
                          AND stored_value.workspace_id = $workspace_id
   WHERE EXISTS (SELECT 1 FROM run WHERE run.run_id = $run_id AND run.workspace_id = $workspace_id)
), added AS (
  SELECT *, row_number() OVER (ORDER BY ordinal) AS place, sum(bytes) OVER (ORDER BY ordinal) AS bytes_so_far
    FROM found WHERE bytes IS NOT NULL
)
SELECT ref, CASE WHEN place = 1 OR bytes_so_far <= $bytes_max THEN data END AS data FROM added ORDER BY ordinal""",
)
READ_STORED_VALUES = Sql(
    "read_stored_values",
    """
SELECT stored_value.value_id, stored_value.data
  FROM stored_value
  JOIN unnest($value_ids::uuid[], $run_ids::uuid[], $workspace_ids::int[]) AS u (value_id, run_id, workspace_id)
       USING (value_id, run_id, workspace_id)""",
)
DELETE_STORED_VALUES = Sql(
    "delete_stored_values",
    """
DELETE FROM stored_value USING unnest($value_ids::uuid[], $run_ids::uuid[], $workspace_ids::int[]) AS u (value_id, run_id, workspace_id)
 WHERE stored_value.value_id = u.value_id AND stored_value.run_id = u.run_id AND stored_value.workspace_id = u.workspace_id""",
)


@dataclass(frozen=True, slots=True)
class ReadValues:
    """The values that were read, by reference, and the references that the run does not have. What is in neither did not fit."""

    values: dict[str, str]
    unknown: list[str]


async def store_values(conn: Connection, workspace_id: int, run_id: UUID, data: Sequence[str]) -> list[str] | None:
    """Keep these JSON texts for a step of the run; their references, in order. None when the workspace has no such run."""
    value_ids = [uuid4() for _ in data]
    stored = await conn.execute(STORE_VALUES, value_ids=value_ids, data=list(data), run_id=run_id, workspace_id=workspace_id)
    if not stored and await conn.fetchval(FIND_RUN_FOR_VALUES, run_id=run_id, workspace_id=workspace_id) is None:
        return None
    return [f"{STORED_REF}{value_id}" for value_id in value_ids]


async def read_values(conn: Connection, workspace_id: int, run_id: UUID, refs: Sequence[str], bytes_max: int) -> ReadValues:
    """The values behind these references, in their order until `bytes_max` is reached, at least one."""
    refs = list(dict.fromkeys(refs))
    rows = await conn.fetch(
        READ_VALUES,
        refs=refs,
        positions=[memo_position(run_id, ref) for ref in refs],
        value_ids=[_value_id(ref) for ref in refs],
        run_id=run_id,
        workspace_id=workspace_id,
        bytes_max=bytes_max,
    )
    known = {row["ref"] for row in rows}
    return ReadValues(
        {row["ref"]: row["data"] for row in rows if row["data"] is not None}, [ref for ref in refs if ref not in known]
    )


def stored_steps(report: RunReport) -> set[str]:
    """The ids of the steps whose results this report names by reference."""
    ops = report.outcome.ops if isinstance(report.outcome, Reported) else ()
    return {op.id for op in ops if isinstance(op, Step) and op.ref is not UNSET}


async def inline_stored_values(conn: Connection, reports: Sequence[RunReport]) -> list[RunReport]:
    """The same reports, their steps with the data that they refer to. A step whose reference is unknown keeps it: it is refused.

    Nothing is deleted, since a report may still be put off; `delete_used_values` does that for those that were applied.
    """
    wanted = _stored_refs(reports)
    if not wanted:
        return list(reports)
    rows = await conn.fetch(READ_STORED_VALUES, **_columns(wanted))
    data = {row["value_id"]: row["data"] for row in rows}
    return [_inlined(report, data) for report in reports]


async def delete_used_values(conn: Connection, reports: Sequence[RunReport]) -> None:
    """Delete the stored values of reports that were applied in this transaction."""
    if wanted := _stored_refs(reports):
        await conn.execute(DELETE_STORED_VALUES, **_columns(wanted))
        crash_point("value_used_before_commit")


def _inlined(report: RunReport, data: dict[UUID, str]) -> RunReport:
    if not isinstance(report.outcome, Reported) or not any(_has_ref(op) for op in report.outcome.ops):
        return report
    ops = tuple(_with_data(op, data) for op in report.outcome.ops)
    return replace(report, outcome=replace(report.outcome, ops=ops))


def _with_data(op: Op, data: dict[UUID, str]) -> Op:
    if isinstance(op, Step) and isinstance(op.ref, str) and (value_id := _value_id(op.ref)) in data:
        return msgspec.structs.replace(op, data=Raw(data[value_id].encode()), ref=UNSET)
    return op


def _has_ref(op: Op) -> bool:
    return isinstance(op, Step) and op.ref is not UNSET


def _stored_refs(reports: Iterable[RunReport]) -> list[tuple[UUID, RunReport]]:
    return [
        (value_id, report)
        for report in reports
        if isinstance(report.outcome, Reported)
        for op in report.outcome.ops
        if isinstance(op, Step) and isinstance(op.ref, str) and (value_id := _value_id(op.ref)) is not None
    ]


def _columns(wanted: list[tuple[UUID, RunReport]]) -> dict[str, list[object]]:
    # A value of another run or workspace is not found, whoever knows its id.
    return {
        "value_ids": [value_id for value_id, _ in wanted],
        "run_ids": [report.run_id for _, report in wanted],
        "workspace_ids": [report.workspace_id for _, report in wanted],
    }


def _value_id(ref: str) -> UUID | None:
    """The id in the reference of a stored value; None for any other text."""
    if not ref.startswith(STORED_REF):
        return None
    try:
        value_id = UUID(ref[len(STORED_REF) :])
    except ValueError:
        return None
    # UUID() takes braces and other spellings; a reference has one.
    return value_id if str(value_id) == ref[len(STORED_REF) :] else None
