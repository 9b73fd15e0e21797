"""The engines that share this database: each says that it lives; nobody is elected."""

from __future__ import annotations

from uuid import UUID

from engine.store.sql import Connection, Sql

REGISTER_ENGINE = Sql(
    "register_engine",
    "INSERT INTO engine (engine_id, name, state) VALUES ($engine_id, $name, 'running') ON CONFLICT DO NOTHING",
)
TOUCH_ENGINE = Sql("touch_engine", "UPDATE engine SET seen_at = clock_timestamp(), state = $state WHERE engine_id = $engine_id")
FORGET_ENGINE = Sql("forget_engine", "DELETE FROM engine WHERE engine_id = $engine_id")
COUNT_OTHERS = Sql(
    "count_other_engines",
    "SELECT count(*) FROM engine WHERE engine_id <> $engine_id AND seen_at > clock_timestamp() - interval '60 seconds'",
)
# The rows of engines that were killed; a day, so that a person can still see them.
FORGET_DEAD = Sql("forget_dead_engines", "DELETE FROM engine WHERE seen_at < clock_timestamp() - interval '1 day'")


async def register_engine(conn: Connection, engine_id: UUID, name: str) -> None:
    await conn.execute(REGISTER_ENGINE, engine_id=engine_id, name=name)
    await conn.execute(FORGET_DEAD)


async def touch_engine(conn: Connection, engine_id: UUID, state: str) -> int:
    """Say that this engine lives; how many others do."""
    await conn.execute(TOUCH_ENGINE, engine_id=engine_id, state=state)
    others: int = await conn.fetchval(COUNT_OTHERS, engine_id=engine_id)
    return others


async def forget_engine(conn: Connection, engine_id: UUID) -> None:
    await conn.execute(FORGET_ENGINE, engine_id=engine_id)
