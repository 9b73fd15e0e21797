"""One SQL statement with a name and `$named` parameters, and the connection that runs it.

Every statement is registered by its name: a test prepares them all, and the name is its comment in the server's own statistics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg

from engine.store.function_cache import FunctionCache

_PARAMETER = re.compile(r"\$([a-z_][a-z0-9_]*)")

STATEMENTS: dict[str, Sql] = {}


class Sql:
    """`Sql("expire_wait", "DELETE FROM wait WHERE run_id = $run_id")`; the same parameter may occur several times."""

    __slots__ = ("name", "parameters", "text")

    def __init__(self, name: str, text: str) -> None:
        if name in STATEMENTS:
            raise ValueError(f"two statements are named {name!r}")
        self.name = name
        self.parameters: tuple[str, ...] = tuple(dict.fromkeys(_PARAMETER.findall(text)))
        numbers = {parameter: index for index, parameter in enumerate(self.parameters, 1)}
        self.text = f"/* {name} */ " + _PARAMETER.sub(lambda found: f"${numbers[found[1]]}", text)
        STATEMENTS[name] = self


class Connection:
    """A connection inside one transaction. It lives in the asyncio loop; store functions get it and never keep it.

    `run_news` collects leased runs to which something came from outside; whoever waits for it hears of it after the commit.
    `functions` is what the process knows of its database's apps; `opening` is the script that the transaction was opened with.
    """

    __slots__ = ("_raw", "functions", "opening", "run_news")

    def __init__(self, raw: Any, functions: FunctionCache | None = None, opening: str = "") -> None:
        self._raw = raw
        self.functions = FunctionCache() if functions is None else functions
        self.opening = opening
        self.run_news: list[UUID] = []

    async def fetch(self, sql: Sql, **values: Any) -> list[asyncpg.Record]:
        return await self._raw.fetch(sql.text, *_ordered(sql, values))  # type: ignore[no-any-return]

    async def fetchrow(self, sql: Sql, **values: Any) -> asyncpg.Record | None:
        return await self._raw.fetchrow(sql.text, *_ordered(sql, values))

    async def fetchval(self, sql: Sql, **values: Any) -> Any:
        return await self._raw.fetchval(sql.text, *_ordered(sql, values))

    async def execute(self, sql: Sql, **values: Any) -> int:
        """Run it and give the number of rows that it wrote."""
        status = await self._raw.execute(sql.text, *_ordered(sql, values))
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def execute_script(self, text: str) -> None:
        """Run several statements without parameters, in one round trip: a migration, or locks whose numbers are ours."""
        await self._raw.execute(text)


def _ordered(sql: Sql, values: dict[str, Any]) -> Sequence[Any]:
    try:
        ordered = [values[parameter] for parameter in sql.parameters]
    except KeyError as missing:
        raise TypeError(f"statement {sql.name}: no value for ${missing.args[0]}") from None
    if len(values) != len(ordered):
        raise TypeError(f"statement {sql.name}: unknown values {sorted(set(values) - set(sql.parameters))}")
    return ordered
