"""What all tests share: async tests run in Trio, the fixtures of the real Postgres, and logs on the process's own standard error.

Logs on standard error keep an engine's log out of what a command in the same process prints.
"""

import sys

import structlog
from hypothesis import HealthCheck, settings
from pytest_trio.enable_trio_mode import *  # noqa: F403

from tests.postgres import cluster, database, postgres_dsn

__all__ = ["cluster", "database", "postgres_dsn"]

# In a fresh clone the first text that is generated waits for a table of all characters; and no test here asserts how long it takes.
settings.register_profile("durable", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("durable")

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
