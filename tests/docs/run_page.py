"""Executes the Python examples of a page as one module, as a reader would type them one after the other."""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.docs.markdown_blocks import Block, blocks_of


def module_of(page: Path) -> types.ModuleType:
    """A module in which every defining example of the page was executed."""
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
    # Dataclasses and annotations look their module up by its name.
    sys.modules[module.__name__] = module
    execute((block for block in blocks_of(page) if block.is_definition), module)
    return module


def execute(blocks: Iterable[Block], module: types.ModuleType) -> None:
    for block in blocks:
        # Lines of the page, so that a traceback points into it.
        source = "\n" * (block.line - 1) + block.text
        code = compile(source, str(block.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result: Any = eval(code, module.__dict__)  # noqa: S307 (our own pages)
        if inspect.iscoroutine(result):
            asyncio.run(_await(result))


async def _await(coroutine: Any) -> None:
    await coroutine
