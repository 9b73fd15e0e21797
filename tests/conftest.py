"""What all tests share: async tests run in Trio, and the fixtures of the real Postgres."""

from pytest_trio.enable_trio_mode import *  # noqa: F403

from tests.postgres import cluster, database, postgres_dsn

__all__ = ["cluster", "database", "postgres_dsn"]
