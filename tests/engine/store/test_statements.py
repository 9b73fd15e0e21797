"""Every statement of the store is known to Postgres: it parses, its tables and columns exist, its parameters have types."""

import importlib
import pkgutil

import asyncpg

import engine.store
from engine.store.sql import STATEMENTS
from tests.postgres import Cluster


def test_every_statement_prepares_on_the_migrated_schema(cluster: Cluster) -> None:
    for module in pkgutil.iter_modules(engine.store.__path__):
        importlib.import_module(f"engine.store.{module.name}")
    assert len(STATEMENTS) > 80

    async def prepare_all(raw: asyncpg.Connection) -> dict[str, str]:
        faults = {}
        for name, sql in STATEMENTS.items():
            try:
                await raw.prepare(sql.text)
            except asyncpg.PostgresError as error:
                faults[name] = str(error)
        return faults

    name = cluster.create_database()
    try:
        assert cluster.run(prepare_all, name) == {}
    finally:
        cluster.drop_database(name)
