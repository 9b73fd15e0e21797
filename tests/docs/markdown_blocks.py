"""Reads the fenced examples of the Markdown pages, in their order. The words behind the language say how an example is tested:

`python`        defines things; executed, in the namespace of its page
`python engine` needs a running engine; may use `await` at its top
`python trio`   defines things for a server that runs Trio
`sh`            run with bash against a running engine, the blocks of a page in one shell
`sh setup`      the same, before the others of its page, when nobody would write it there
`sh server`     commands that run until they are stopped; started as they stand
`json`          must be JSON; behind a `sh` block its output must look the same
Other languages (`console`, `ini`, `python-django` …) can not be run here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\S*) ?(.*)$")


@dataclass(frozen=True)
class Block:
    """One fenced example. `line` is the line of its first line of text, from 1."""

    page: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_definition(self) -> bool:
        return self.language == "python" and "engine" not in self.words

    def word(self, name: str) -> str | None:
        """The value of `name=value` behind the language."""
        return next((word.partition("=")[2] for word in self.words if word.startswith(f"{name}=")), None)


def pages() -> list[Path]:
    """Every page that people read."""
    named = [ROOT / "README.md", ROOT / "sdk_python" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in named if "decisions" not in page.parts]


def blocks_of(page: Path) -> list[Block]:
    return list(_read(page))


def _read(page: Path) -> Iterator[Block]:
    language: str | None = None
    words: tuple[str, ...] = ()
    first, lines = 0, list[str]()
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        fence = _FENCE.match(line)
        if fence is None:
            lines.append(line)
        elif language is None:
            language, words, first, lines = fence[1], tuple(fence[2].split()), number + 1, []
        else:
            yield Block(page, first, language, words, "\n".join(lines) + "\n")
            language = None
    if language is not None:
        raise ValueError(f"{page}: the block that begins at line {first} has no end.")
