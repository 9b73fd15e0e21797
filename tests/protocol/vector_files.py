"""Reads the vectors, the schemas and SPEC.md for the tests of this folder. Never decides anything."""

import base64
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

PROTOCOL = Path(__file__).parents[2] / "protocol"


def load(name: str) -> Any:
    return json.loads((PROTOCOL / "vectors" / name).read_text(encoding="utf-8"))


def named(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """For pytest.mark.parametrize: the cases, shown by their names."""
    return {"argvalues": cases, "ids": [case["name"] for case in cases]}


def input_bytes(case: dict[str, Any]) -> bytes:
    if "text" in case:
        return bytes(case["text"], "utf-8")
    if "base64" in case:
        return base64.b64decode(case["base64"])
    return "".join(text * times for text, times in case["parts"]).encode()


def schemas() -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in sorted((PROTOCOL / "schema").glob("*.json"))}


def validator(name: str) -> Draft202012Validator:
    every = schemas()
    registry = Registry().with_resources((key, Resource.from_contents(each)) for key, each in every.items())
    return Draft202012Validator(every[name], registry=registry)
