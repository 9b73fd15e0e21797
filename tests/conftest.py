"""What all tests share: async tests run in Trio, the fixtures of the real Postgres, and logs on the process's own standard error.

The last keeps an engine's log out of what a command in the same process prints.
"""

import sys

import structlog
from pytest_trio.enable_trio_mode import *  # noqa: F403

from tests.postgres import cluster, database, postgres_dsn

__all__ = ["cluster", "database", "postgres_dsn"]

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
