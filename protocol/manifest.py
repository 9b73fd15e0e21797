"""What an app offers: the manifest of SPEC section 4.1, its functions, and the rules that a type alone can
not say.

CEL expressions are only texts here; the engine compiles them when it takes the manifest.
"""

from typing import Annotated

from msgspec import Meta, Struct, field

from protocol import limits, names
from protocol.ops import Backoff, Retries, Seconds, check_count, require
from protocol.refused import MessageRefused


class Workspace(Struct, frozen=True):
    """An app in an environment. `app` is "*" only while the engine does not know who serves there."""

    app: str
    env: str

    def __str__(self) -> str:
        return f"{self.app}/{self.env}"


class Trigger(Struct, frozen=True, omit_defaults=True, rename={"if_": "if"}):
    event: str
    if_: str | None = None


class Concurrency(Struct, frozen=True, omit_defaults=True):
    limit: Annotated[int, Meta(ge=1, le=limits.COUNT_MAX)]
    key: str | None = None


class FunctionConfig(Struct, frozen=True, omit_defaults=True):
    """One function. `retries` counts the tries after the first; without `step_timeout_seconds` it is 15
    minutes.
    """

    id: str
    triggers: list[Trigger]
    name: str | None = None
    retries: Retries = 3
    backoff: Backoff = Backoff()
    concurrency: list[Concurrency] = field(default_factory=list)
    step_timeout_seconds: Seconds = 900.0


class Batch(Struct, frozen=True, omit_defaults=True):
    max: Annotated[int, Meta(ge=1, le=1_000)] = 1


class Capabilities(Struct, frozen=True):
    """What a port can do. Left out is: can not."""

    checkpoint: bool = False
    batch: Batch = Batch()
    refs: bool = False
    alive: bool = False


class Sdk(Struct, frozen=True):
    name: str
    version: str


class Manifest(Struct, frozen=True, tag_field="type", tag="manifest"):
    workspace: Workspace
    protocol: list[Annotated[int, Meta(ge=1, le=limits.COUNT_MAX)]]
    functions: list[FunctionConfig]
    sdk: Sdk = Sdk("unknown", "0")
    capabilities: Capabilities = Capabilities()
    deployment: str = ""
    max_body: Annotated[int, Meta(ge=1 << 20, le=limits.INTEGER_MAX)] = limits.BODY_BYTES_MAX


def check_workspace(workspace: Workspace, place: str, *, star_allowed: bool = False) -> None:
    """Refuse a workspace whose names break the rules."""
    if not (star_allowed and workspace.app == "*"):
        require(names.app_problem(workspace.app), f"{place}/app")
    require(names.environment_problem(workspace.env), f"{place}/env")


def check_manifest(manifest: Manifest, place: str = "") -> None:
    """Refuse the whole manifest, naming the index of the function at fault."""
    check_workspace(manifest.workspace, f"{place}/workspace")
    if len(manifest.deployment) > 256:
        raise MessageRefused("out_of_range", "The deployment may have 256 characters.", f"{place}/deployment")
    seen: set[str] = set()
    for index, function in enumerate(manifest.functions):
        here = f"{place}/functions/{index}"
        _check_function(function, here)
        if function.id in seen:
            raise MessageRefused("duplicate_function", f"Two functions have the id {names.shown(function.id)}.", f"{here}/id")
        seen.add(function.id)


def _check_function(function: FunctionConfig, place: str) -> None:
    require(names.function_problem(function.id), f"{place}/id")
    check_count(len(function.triggers), 1, limits.TRIGGERS_MAX, "triggers", f"{place}/triggers")
    for index, trigger in enumerate(function.triggers):
        require(names.event_name_problem(trigger.event), f"{place}/triggers/{index}/event")
