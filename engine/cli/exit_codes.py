"""The exit codes of `durable`, in one place. Scripts may rely on them.

0  it was done, or shown
1  the engine refused it, or what was waited for has failed
2  the command was written wrongly
3  no engine answers
4  what was named does not exist
5  `durable audit` found something
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
NOT_FOUND: Final = 4
FINDINGS: Final = 5
