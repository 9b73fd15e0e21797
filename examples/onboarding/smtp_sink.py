"""A mail server that delivers nothing: it prints each mail that it takes, and appends it to a file.

`python -m examples.onboarding.smtp_sink PORT FILE`
"""

from __future__ import annotations

import asyncio
import sys
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope


class Sink:
    """Keeps mails in a file, one after the other."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def handle_DATA(self, _server: SMTP, _session: Any, envelope: Envelope) -> str:
        content = envelope.original_content or b""
        with self._path.open("ab") as file:
            file.write(content + b"\n")
        message = message_from_bytes(content, policy=default)
        print(f"Mail       to {message['To']}: {message['Subject']}", flush=True)
        return "250 Taken"


async def main(port: int, path: Path) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(Sink(path)), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
