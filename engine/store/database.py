"""The way into Postgres: one asyncio loop inside Trio, one pool, and whole transactions as single crossings between the two.

A store function is an asyncio coroutine `work(connection, …)`. `Database.transact` crosses from Trio once, begins, runs it, commits.
Crossing per transaction instead of per query is what makes a transaction of eight statements affordable.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID

import asyncpg
import trio_asyncio

from engine.store.crash_points import crash_point
from engine.store.function_cache import FunctionCache
from engine.store.sql import Connection

P = ParamSpec("P")
T = TypeVar("T")

# No statement of ours takes seconds; one that does is stuck, and gives its connection back.
STATEMENT_SECONDS_MAX = 20.0


class DatabaseUnavailable(Exception):
    """The database can not be reached or is going down. Try again; nothing is known to have been written."""

    code = "database_unavailable"


class StatementTimedOut(DatabaseUnavailable):
    """The database ended a statement that took too long: it is overloaded, or the statement does too much. Try again with less."""

    code = "statement_timed_out"


class CommitUnknown(DatabaseUnavailable):
    """The connection was lost while committing: it may or may not have happened. Repeat with the same ids."""

    code = "commit_unknown"


class TransactionConflict(Exception):
    """A deadlock or serialization failure ended the transaction. Nothing was written; repeat it."""

    code = "transaction_conflict"


class Database:
    """A pool of connections. Made by `open_database`. `on_run_news` is told of leased runs to which a transaction brought something."""

    def __init__(self, pool: Any, fixed_plans_pool: Any = None) -> None:
        self._pool = pool
        self._fixed_plans_pool = fixed_plans_pool or pool
        self.on_run_news: Callable[[Sequence[UUID]], None] = lambda run_ids: None
        self._functions = FunctionCache()

    async def transact(self, work: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in one transaction and commit it."""
        return await self._transact(self._pool, "", work, *args, **kwargs)

    async def transact_opened(
        self, opening: str, work: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `work` in one transaction whose BEGIN carries `opening`, statements without parameters: its first locks.

        For writers that repeat a few statements: their plans are made once and go by index (`_FIXED_PLANS`).
        """
        return await self._transact(self._fixed_plans_pool, opening, work, *args, **kwargs)

    async def _transact(
        self, pool: Any, opening: str, work: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        async def run() -> T:
            is_committing, is_over = False, False
            try:
                async with _connection(pool) as raw:
                    conn = Connection(raw, self._functions, opening)
                    try:
                        try:
                            await conn.execute_script("BEGIN;" + opening)
                            result = await work(conn, *args, **kwargs)
                        except BaseException:
                            is_over = await _roll_back(raw)
                            raise
                        is_committing = True
                        crash_point("before_commit")
                        await raw.execute("COMMIT")
                        is_over = True
                    finally:
                        # Cancelled in COMMIT or ROLLBACK nobody knows where it stands: it may not return to the pool.
                        if not is_over and not raw.is_closed():
                            raw.terminate()
                    crash_point("after_commit")
                    if conn.run_news:
                        self.on_run_news(conn.run_news)
                    return result
            except _LOST as error:
                timed_out = isinstance(error, asyncpg.QueryCanceledError)
                kind = CommitUnknown if is_committing else StatementTimedOut if timed_out else DatabaseUnavailable
                raise kind(str(error) or type(error).__name__) from error
            except _CONFLICT as error:
                raise TransactionConflict(str(error)) from error

        result: T = await trio_asyncio.aio_as_trio(run)()
        return result

    async def write_once(self, work: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work`, which is ONE writing statement and so a transaction by itself: no round trips for BEGIN and COMMIT.

        The statement commits before it is answered, so that a connection lost while it runs is a lost commit. Its plan is made once
        and goes by index (`_FIXED_PLANS`).
        """

        async def run() -> T:
            is_sent = False
            try:
                async with _connection(self._fixed_plans_pool) as raw:
                    is_over = False
                    crash_point("before_commit")
                    try:
                        is_sent = True
                        result = await work(Connection(raw, self._functions), *args, **kwargs)
                        is_over = True
                    except asyncpg.PostgresError:
                        is_over = True
                        raise
                    finally:
                        # Cancelled while it runs nobody knows where it stands: the connection may not return to the pool.
                        if not is_over and not raw.is_closed():
                            raw.terminate()
                    crash_point("after_commit")
                    return result
            except asyncpg.QueryCanceledError as error:
                raise StatementTimedOut(str(error)) from error
            except _LOST as error:
                raise (CommitUnknown if is_sent else DatabaseUnavailable)(str(error) or type(error).__name__) from error
            except _CONFLICT as error:
                raise TransactionConflict(str(error)) from error

        result: T = await trio_asyncio.aio_as_trio(run)()
        return result

    async def read(self, work: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work`, which only reads, without a transaction around it: a look that finds nothing costs one round trip."""

        async def run() -> T:
            try:
                async with _connection(self._pool) as raw:
                    return await work(Connection(raw, self._functions), *args, **kwargs)
            except (*_LOST, *_CONFLICT) as error:
                raise DatabaseUnavailable(str(error) or type(error).__name__) from error

        result: T = await trio_asyncio.aio_as_trio(run)()
        return result

    async def is_reachable(self) -> bool:
        """Whether the database answers now."""

        async def ask() -> None:
            async with self._pool.acquire(timeout=2) as raw:
                await raw.fetchval("SELECT 1", timeout=2)

        try:
            await trio_asyncio.aio_as_trio(ask)()
        except (*_LOST, asyncpg.PostgresError):
            return False
        return True

    async def listen(self, channel: str, heard: Callable[[str], None]) -> None:
        """Hear notifications on `channel` until cancelled or the connection is lost (then DatabaseUnavailable)."""

        async def hear() -> None:
            async with self._pool.acquire(timeout=STATEMENT_SECONDS_MAX) as raw:
                lost = asyncio.Event()
                raw.add_termination_listener(lambda _: lost.set())
                await raw.add_listener(channel, lambda _c, _pid, _channel, payload: heard(payload))
                try:
                    await lost.wait()
                finally:
                    if not raw.is_closed():
                        await raw.reset()
            raise ConnectionError("the listening connection was lost")

        try:
            await trio_asyncio.aio_as_trio(hear)()
        except _LOST as error:
            raise DatabaseUnavailable(str(error)) from error

    async def notify(self, channel: str, payload: str) -> None:
        """Send one notification, outside any other transaction: inside one it would serialize all commits."""

        async def send() -> None:
            async with self._pool.acquire(timeout=STATEMENT_SECONDS_MAX) as raw:
                await raw.execute("SELECT pg_notify($1, $2)", channel, payload)

        try:
            await trio_asyncio.aio_as_trio(send)()
        except (*_LOST, asyncpg.PostgresError) as error:
            raise DatabaseUnavailable(str(error)) from error


async def _roll_back(raw: Any) -> bool:
    """Roll back, also when BEGIN or the work was cancelled; whether that is known to have happened."""
    if raw.is_closed():
        return False
    try:
        await asyncio.wait_for(raw.execute("ROLLBACK"), 5)
    except Exception:
        return False
    return True


def _connection(pool: Any) -> Any:
    """A connection of the pool. Only who must wait for one needs the clock, which costs a task; connecting has its own time limit."""
    return pool.acquire(timeout=None if pool.get_idle_size() else STATEMENT_SECONDS_MAX)


async def _leave_as_it_is(raw: Any) -> None:
    """Nothing to reset when a connection returns: no statement of ours changes its session, and `listen` cleans up by itself.

    The usual reset is a round trip after every transaction. One that is still open is rolled back before this, too.
    """


_LOST = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.InsufficientResourcesError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.QueryCanceledError,
    asyncpg.ReadOnlySQLTransactionError,
    # Locks on a standby that was the primary a moment ago.
    asyncpg.ObjectNotInPrerequisiteStateError,
    # This process stood still in a transaction (SIGSTOP, a frozen machine), or the server's disk failed.
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalClientError,
)
# A cached statement is invalid once after another engine's migration; asyncpg has forgotten it by then.
_CONFLICT = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.InvalidCachedStatementError)


# Planning a statement of many parts takes longer than running it for one row, so it is planned once and without looking at the values.
# Such a plan must not depend on what the tables hold at that moment: a queue table that was empty then is read whole for ever after.
_FIXED_PLANS = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}


@asynccontextmanager
async def open_database(dsn: str, *, connections_max: int = 10) -> AsyncIterator[Database]:
    """Open the asyncio loop and the pool; close both at the end. Waits until the database answers."""
    async with trio_asyncio.open_loop():

        async def create(connections_min: int, connections_max: int, settings: dict[str, str]) -> Any:
            return await asyncpg.create_pool(
                dsn=dsn,
                min_size=connections_min,
                max_size=connections_max,
                command_timeout=STATEMENT_SECONDS_MAX + 5,
                max_inactive_connection_lifetime=300,
                timeout=STATEMENT_SECONDS_MAX,
                reset=_leave_as_it_is,
                server_settings={
                    "application_name": "durable",
                    "statement_timeout": str(int(STATEMENT_SECONDS_MAX * 1000)),
                    "idle_in_transaction_session_timeout": "30000",
                    "timezone": "UTC",
                    # Compiling a statement costs more than any of ours takes.
                    "jit": "off",
                    **settings,
                },
            )

        try:
            pool = await trio_asyncio.aio_as_trio(create)(2, connections_max, {})
            fixed_plans_pool = await trio_asyncio.aio_as_trio(create)(0, 2, _FIXED_PLANS)
        except (*_LOST, asyncpg.PostgresError) as error:
            raise DatabaseUnavailable(str(error) or type(error).__name__) from error
        try:
            yield Database(pool, fixed_plans_pool)
        finally:
            # A query that still runs here belongs to nobody any more.
            pool.terminate()
            fixed_plans_pool.terminate()
