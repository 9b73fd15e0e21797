"""A program: the embedded Postgres without an engine, for systems of several engines. Restarts a postmaster that dies; ends at SIGTERM.

`python -m tests.system.run_postgres DATA_DIR` prints the address once it takes connections.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import trio

from engine.store.embedded_postgres import open_embedded_postgres, serve_embedded_postgres


async def main(data_dir: Path) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_embedded_postgres(data_dir) as embedded, trio.open_nursery() as nursery:
            await nursery.start(serve_embedded_postgres, embedded)
            print(embedded.dsn, flush=True)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
