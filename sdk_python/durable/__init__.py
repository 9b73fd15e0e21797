"""Durable execution for Python: ordinary functions whose steps survive crashes, deploys, retries and long waits.

The public names. Everything that is not here may change without notice.
"""

from durable.app import App
from durable.current_step import CurrentStep, current_step
from durable.durations import Duration, DurationRefused
from durable.errors import (
    AmbiguousStepId,
    CodeMismatch,
    ConfigurationError,
    DurableError,
    EngineUnreachable,
    NonRetriableError,
    Parked,
    Refused,
    ResultNotReady,
    RetryAfterError,
    RunCancelled,
    RunFailed,
    StepError,
    StepUsageError,
)
from durable.event import ReceivedEvent
from durable.function import Function
from durable.replay_log import ReplayFilter
from durable.run_handle import RunHandle
from durable.runtime import StepTimeout
from durable.step import Step
from durable.sync_step import SyncStep
from durable.triggers import Concurrency, Event
from durable.version import VERSION as __version__
from durable.wire import Backoff, EventAnswer, StartedRun, SyncAnswer

__all__ = [
    "AmbiguousStepId",
    "App",
    "Backoff",
    "CodeMismatch",
    "Concurrency",
    "ConfigurationError",
    "CurrentStep",
    "DurableError",
    "Duration",
    "DurationRefused",
    "EngineUnreachable",
    "Event",
    "EventAnswer",
    "Function",
    "NonRetriableError",
    "Parked",
    "ReceivedEvent",
    "Refused",
    "ReplayFilter",
    "ResultNotReady",
    "RetryAfterError",
    "RunCancelled",
    "RunFailed",
    "RunHandle",
    "StartedRun",
    "Step",
    "StepError",
    "StepTimeout",
    "StepUsageError",
    "SyncAnswer",
    "SyncStep",
    "__version__",
    "current_step",
]
