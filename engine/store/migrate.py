"""Brings the database to this engine's schema: the files of migrations/, in order, each once, under one lock.

It never changes a migration that was applied, and refuses a database that a newer engine has migrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from engine.store.sql import Connection, Sql

MIGRATIONS = Path(__file__).parent / "migrations"

CREATE_MIGRATION_TABLE = """
CREATE TABLE IF NOT EXISTS migration (
  number     int PRIMARY KEY,
  name       text NOT NULL,
  sha256     text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
);
"""

# Two engines that start at once migrate one after the other. The number is "durable" in no special sense: only unlikely.
LOCK_MIGRATION = Sql("lock_migration", "SELECT pg_advisory_xact_lock(7_345_121_901)")
READ_MIGRATIONS = Sql("read_migrations", "SELECT number, name, sha256 FROM migration ORDER BY number")
RECORD_MIGRATION = Sql("record_migration", "INSERT INTO migration (number, name, sha256) VALUES ($number, $name, $sha256)")


class MigrationRefused(Exception):
    """The database does not fit this engine; the text says which of both is newer or changed."""

    code = "migration_refused"


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    text: str

    @property
    def sha256(self) -> str:
        return sha256(self.text.encode()).hexdigest()


async def migrate(conn: Connection) -> list[str]:
    """Apply what is missing; the names of what was applied."""
    await conn.execute(LOCK_MIGRATION)
    await conn.execute_script(CREATE_MIGRATION_TABLE)
    applied = {row["number"]: row for row in await conn.fetch(READ_MIGRATIONS)}
    ours = read_migrations()
    newest = ours[-1].number
    if unknown := [row["name"] for number, row in applied.items() if number > newest]:
        raise MigrationRefused(
            f"The database was migrated by a newer engine ({', '.join(unknown)}). Start that version, or restore a backup."
        )
    names: list[str] = []
    for migration in ours:
        row = applied.get(migration.number)
        if row is None:
            await conn.execute_script(migration.text)
            await conn.execute(RECORD_MIGRATION, number=migration.number, name=migration.name, sha256=migration.sha256)
            names.append(migration.name)
        elif row["sha256"] != migration.sha256:
            raise MigrationRefused(
                f"Migration {migration.name} was applied with another content. Use the engine version that made the database."
            )
    return names


def read_migrations() -> list[Migration]:
    """The migrations of this engine, by number."""
    found = [
        Migration(int(path.name.partition("_")[0]), path.stem, path.read_text()) for path in sorted(MIGRATIONS.glob("*.sql"))
    ]
    assert [migration.number for migration in found] == list(range(1, len(found) + 1))
    return found
