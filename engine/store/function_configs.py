"""The manifests of functions as decisions need them, parsed once and kept in memory."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from engine.store.sql import Connection, Sql
from protocol.manifest import FunctionConfig

READ_CONFIGS = Sql(
    "read_configs",
    "SELECT function_id, config FROM function WHERE function_id = ANY($function_ids::int[])",
)

# By text, not by id: a text means the same whatever version or database it is from.
_parsed: dict[str, FunctionConfig] = {}
PARSED_MAX = 10_000


async def read_function_configs(conn: Connection, function_ids: Iterable[int]) -> dict[int, FunctionConfig]:
    """The configuration in force of each function."""
    rows = await conn.fetch(READ_CONFIGS, function_ids=list(function_ids))
    configs: dict[int, FunctionConfig] = {}
    for row in rows:
        text = row["config"]
        config = _parsed.get(text)
        if config is None:
            if len(_parsed) >= PARSED_MAX:
                _parsed.clear()
            config = _parsed[text] = msgspec.json.decode(text, type=FunctionConfig)
        configs[row["function_id"]] = config
    return configs
