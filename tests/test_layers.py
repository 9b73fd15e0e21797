"""The shape of the source, read from its syntax trees: layers, homes of packages, pure core, SQL as plain text, file sizes.

`protocol ← core ← store | transport ← nursery | api ← main`. Each rule has a sample below that breaks it, so that a rule which
finds nothing any more is noticed.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each layer may import of ours, besides itself. api and nursery meet through rows and hints, never through imports.
MAY_IMPORT = {
    "protocol": set[str](),
    "engine.core": {"protocol"},
    "engine.store": {"protocol", "engine.core"},
    "engine.transport": {"protocol", "engine.core"},
    "engine.nursery": {"protocol", "engine.core", "engine.store", "engine.transport"},
    "engine.api": {"protocol", "engine.core", "engine.store", "engine.transport"},
    "engine.logs": set[str](),
    **dict.fromkeys(
        ["engine.main", "engine.cli"],
        {f"engine.{name}" for name in ("core", "store", "transport", "nursery", "api", "logs", "main", "cli")} | {"protocol"},
    ),
}

# Packages with a single home. asyncio is at home where asyncpg is; everything else is Trio.
HOMES = {
    "asyncpg": "engine.store",
    "asyncio": "engine.store",
    "trio_asyncio": "engine.store",
    "pgserver": "engine.store",
    "httpx": "engine.transport",
    "certifi": "engine.transport",
    "cel": "engine.core",
    "quart": "engine.api",
    "quart_trio": "engine.api",
    "click": "engine.cli",
    "rich": "engine.cli",
}

# The pure layers decide and describe: no clock, no randomness, no I/O, no scheduler.
PURE_PACKAGES = {"engine.core": {"msgspec", "cel"}, "protocol": {"msgspec"}}
# Signing keys and message ids are made where their format is written down.
IMPURE_ALLOWED = {("protocol.signing", "secrets")}
IMPURE_MODULES = {
    *(
        "asyncio",
        "concurrent",
        "threading",
        "_thread",
        "multiprocessing",
        "sched",
        "queue",
        "signal",
        "time",
        "random",
        "secrets",
    ),
    *("os", "sys", "io", "pathlib", "glob", "shutil", "tempfile", "mmap", "fcntl", "pty", "subprocess", "ctypes", "logging"),
    *("socket", "socketserver", "select", "selectors", "ssl", "http", "urllib.request", "ftplib", "smtplib", "sqlite3", "shelve"),
}
IMPURE_CALLS = {"now", "utcnow", "today", "uuid1", "uuid4", "urandom", "open", "print", "input", "exec", "eval", "breakpoint"}

# Everyone needs these; any other package is used in a few places, so that it can be replaced.
EVERYWHERE = {"trio", "msgspec", "structlog", "click"}
IMPORTING_MODULES_MAX = 6

LINES_MAX = 500
NAMES_OF_NOTHING = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc"}

# Methods that send text to Postgres.
SQL_METHODS = {"execute", "executemany", "fetch", "fetchrow", "fetchval", "prepare"}


@dataclass(frozen=True)
class Module:
    """A parsed file and its dotted name."""

    name: str
    tree: ast.Module
    lines: int
    is_package: bool = False

    @property
    def layer(self) -> str:
        words = self.name.split(".")
        if words[0] != "engine" or len(words) == 1:
            return words[0]
        return "engine.main" if words[1] == "__main__" else ".".join(words[:2])


@dataclass(frozen=True)
class Broken:
    """A place and the rule that it breaks."""

    module: str
    line: int
    rule: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.rule}"


def layer_breaks(module: Module) -> Iterator[Broken]:
    if module.name == "engine":
        allowed = set[str]()
    elif module.layer in MAY_IMPORT:
        allowed = MAY_IMPORT[module.layer] | {module.layer, "engine"}
    elif module.layer == "durable":
        allowed = {"durable"}
    else:
        yield Broken(module.name, 1, f"{module.layer} is in no layer: put it into one, or name it in {Path(__file__).name}")
        return
    for line, imported in imports_of(module):
        layer = Module(imported, module.tree, 0).layer
        ours = layer == "engine" or layer == "durable" or layer in MAY_IMPORT or layer.startswith("engine.")
        if ours and layer not in allowed:
            yield Broken(module.name, line, f"{module.layer} must not import {imported}")


def home_breaks(module: Module) -> Iterator[Broken]:
    if module.layer == "durable":
        return
    for line, imported in imports_of(module):
        home = HOMES.get(imported.split(".")[0])
        if home is not None and module.layer != home:
            yield Broken(module.name, line, f"{imported} is at home in {home} only")


def purity_breaks(module: Module) -> Iterator[Broken]:
    packages = PURE_PACKAGES.get(module.layer)
    if packages is None:
        return
    for line, imported in imports_of(module):
        top = imported.split(".")[0]
        if (module.name, imported) in IMPURE_ALLOWED:
            continue
        if top in IMPURE_MODULES or imported in IMPURE_MODULES:
            yield Broken(module.name, line, f"{module.layer} is pure and must not import {imported}; let the caller pass it in")
        elif top not in sys.stdlib_module_names and top not in packages and top not in {"engine", "protocol"}:
            yield Broken(
                module.name, line, f"{module.layer} may import the standard library and {sorted(packages)}, not {imported}"
            )
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and name_of(node.func) in IMPURE_CALLS:
            yield Broken(module.name, node.lineno, f"{module.layer} is pure: no {name_of(node.func)}()")
        elif isinstance(node, ast.AsyncFunctionDef | ast.Await):
            yield Broken(module.name, node.lineno, f"{module.layer} is pure: nothing in it waits")


def sql_breaks(module: Module) -> Iterator[Broken]:
    """The text of a statement is one literal: nothing that could carry a user's words is ever joined into it."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        if name == "Sql":
            texts = [*node.args, *(keyword.value for keyword in node.keywords)]
            if not texts or not all(isinstance(text, ast.Constant) and isinstance(text.value, str) for text in texts):
                yield Broken(module.name, node.lineno, "Sql() takes plain string literals only; use $parameters")
        elif name in SQL_METHODS and node.args and is_composed(node.args[0]):
            yield Broken(module.name, node.lineno, f"{name}() of a composed text; use a Sql() and $parameters")


def form_breaks(module: Module) -> Iterator[Broken]:
    if module.lines > LINES_MAX:
        yield Broken(module.name, module.lines, f"has {module.lines} lines, more than {LINES_MAX}: look for the second concept")
    if not ast.get_docstring(module.tree):
        yield Broken(module.name, 1, "has no docstring that says what it is")
    if module.name.rpartition(".")[2] in NAMES_OF_NOTHING:
        yield Broken(module.name, 1, "is named after nothing: name it by its concept")


RULES: list[Callable[[Module], Iterator[Broken]]] = [layer_breaks, home_breaks, purity_breaks, sql_breaks, form_breaks]


@pytest.mark.parametrize("rule", RULES)
def test_the_source_keeps_the_rule(rule: Callable[[Module], Iterator[Broken]]) -> None:
    broken = [str(found) for module in read_modules() for found in rule(module)]
    assert not broken, "\n" + "\n".join(broken)


def test_every_layer_is_there_and_is_read() -> None:
    layers = {module.layer for module in read_modules()}
    assert {"protocol", "engine.core", "engine.store"} <= layers


def test_tests_and_examples_are_not_too_long_either() -> None:
    folders = [ROOT / name for name in ("tests", "examples", "benchmarks")]
    lengths = {path: lines_of(path.read_text()) for folder in folders for path in folder.rglob("*.py")}
    assert not {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > LINES_MAX}


def test_few_modules_import_the_same_package() -> None:
    """Prints who imports what; see it with `pytest tests/test_layers.py -s`."""
    importers: dict[str, set[str]] = defaultdict(set)
    for module in read_modules():
        for _, imported in imports_of(module):
            top = imported.split(".")[0]
            if top not in sys.stdlib_module_names and top not in {"engine", "protocol", "durable"}:
                importers[f"{module.name.split('.')[0]}: {top}"].add(module.name)
    for package, modules in sorted(importers.items()):
        print(f"{package:36} {len(modules):3}  {', '.join(sorted(modules)) if len(modules) <= IMPORTING_MODULES_MAX else '…'}")
    crowded = {
        package: sorted(modules)
        for package, modules in importers.items()
        if len(modules) > IMPORTING_MODULES_MAX and package.split(": ")[1] not in EVERYWHERE
    }
    assert not crowded, f"imported by more than {IMPORTING_MODULES_MAX} modules: {crowded}"


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (layer_breaks, "protocol.ops", "import engine.core.run"),
        (layer_breaks, "engine.core.run", "from engine.store import sql"),
        (layer_breaks, "engine.core.run", "from engine import store"),
        (layer_breaks, "engine.core.run", "from ..store import sql"),
        (layer_breaks, "engine.store.sql", "def f():\n    from engine.transport.call import call"),
        (layer_breaks, "engine.transport.call", "import engine.store"),
        (layer_breaks, "engine.api.routes", "from engine.nursery import tree"),
        (layer_breaks, "engine.nursery.tree", "from engine.api import routes"),
        (layer_breaks, "engine.nursery.tree", "import engine.main"),
        (layer_breaks, "engine.anywhere", ""),
        (layer_breaks, "durable.client", "import engine"),
        (layer_breaks, "durable.client", "from protocol.signing import sign"),
        (home_breaks, "engine.nursery.tree", "import asyncpg"),
        (home_breaks, "engine.api.routes", "import trio_asyncio as ta"),
        (home_breaks, "engine.store.sql", "from httpx import AsyncClient"),
        (purity_breaks, "engine.core.run", "import trio"),
        (purity_breaks, "engine.core.run", "from time import monotonic"),
        (purity_breaks, "engine.core.run", "import urllib.request"),
        (purity_breaks, "engine.core.run", "import structlog"),
        (purity_breaks, "engine.core.run", "from datetime import datetime\nat = datetime.now()"),
        (purity_breaks, "engine.core.run", "async def f(): ..."),
        (purity_breaks, "protocol.ops", "import random"),
        (sql_breaks, "engine.store.x", "Sql('a', f'SELECT {b}')"),
        (sql_breaks, "engine.store.x", "Sql('a', 'SELECT %s' % b)"),
        (sql_breaks, "engine.store.x", "Sql('a', 'SELECT ' + b)"),
        (sql_breaks, "engine.store.x", "Sql('a', 'SELECT {}'.format(b))"),
        (sql_breaks, "engine.store.x", "Sql('a', text=TEXT)"),
        (sql_breaks, "engine.store.x", "sql.Sql('a', ' '.join(b))"),
        (sql_breaks, "engine.store.x", "connection.execute(f'SELECT {b}')"),
        (form_breaks, "engine.store.x", "x = 1"),
        (form_breaks, "engine.store.utils", '"""Says."""'),
        (form_breaks, "engine.store.x", '"""Says."""\n' + "x = 1\n" * LINES_MAX),
    ],
)
def test_the_rule_finds_what_breaks_it(rule: Callable[[Module], Iterator[Broken]], name: str, source: str) -> None:
    assert list(rule(Module(name, ast.parse(source), lines_of(source)))), "the rule found nothing"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("engine.nursery.tree", '"""Says."""\nimport trio\nfrom engine.store.sql import Sql\nfrom engine import __version__'),
        ("engine.main", '"""Says."""\nfrom engine.api import routes\nfrom engine.nursery import tree'),
        ("engine.store.x", '"""Says."""\nimport asyncpg\nA = Sql("a", "SELECT 1" " FROM b")\nconnection.execute(A.text)'),
        ("engine.core.run", '"""Says."""\nfrom datetime import datetime\nimport msgspec\nfrom . import ids'),
        ("durable.client", '"""Says."""\nimport httpx\nfrom . import steps'),
    ],
)
def test_the_rules_leave_good_code_alone(name: str, source: str) -> None:
    module = Module(name, ast.parse(source), lines_of(source))
    assert [str(found) for rule in RULES for found in rule(module)] == []


def imports_of(module: Module) -> Iterator[tuple[int, str]]:
    """Every imported module, also inside functions; a relative one by its full name."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                levels = node.level - 1 if module.is_package else node.level
                words = module.name.split(".")
                above = words[: len(words) - levels]
                source = ".".join([*above, *([source] if source else [])])
            if source in {"engine", "durable", "protocol"}:
                # `from engine import store` imports the layer; a constant of the package counts as the package.
                for alias in node.names:
                    is_module = f"{source}.{alias.name}" in MAY_IMPORT
                    yield node.lineno, f"{source}.{alias.name}" if is_module else source
            else:
                yield node.lineno, source


def is_composed(text: ast.expr) -> bool:
    is_format = isinstance(text, ast.Call) and name_of(text.func) in {"format", "join", "replace"}
    return is_format or isinstance(text, ast.JoinedStr | ast.BinOp)


def name_of(called: ast.expr) -> str:
    match called:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def read_modules() -> list[Module]:
    folders = {"engine": ROOT, "protocol": ROOT, "durable": ROOT / "sdk_python"}
    modules = []
    for package, above in folders.items():
        for path in sorted((above / package).rglob("*.py")):
            words = path.relative_to(above).with_suffix("").parts
            name = ".".join(words[:-1] if words[-1] == "__init__" else words)
            text = path.read_text()
            modules.append(Module(name, ast.parse(text, str(path)), lines_of(text), is_package=words[-1] == "__init__"))
    return modules


def lines_of(text: str) -> int:
    return text.count("\n")
