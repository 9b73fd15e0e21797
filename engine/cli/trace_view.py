"""Draws a run for a terminal: what it is, why it does not run, its steps as a waterfall with their times, and its failures.

Pure: JSON of the API in, something that rich prints out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.cli.printing import parse_instant, printable, short_instant, short_seconds, status_style

BAR_CHARACTERS: Final = 36
# A night's sleep would press all else into nothing: a wait is drawn at most this many times as long as all that is not waiting.
WAIT_DRAWN_MAX: Final = 0.5
VALUE_CHARACTERS_MAX: Final = 60
_APP, _DURABLE, _WAIT = ("█", "green"), ("▒", "yellow"), ("·", "blue")

Json = Mapping[str, Any]


def render_trace(run: Json) -> RenderableType:
    """The drawing of a run, as `GET …/runs/<id>` gives it."""
    parts: list[RenderableType] = [_headline(run)]
    if run["why"]:
        parts.append(Text(printable(run["why"]), style="bold yellow"))
    parts += [Text(), _waterfall(run), Text(), _sums(run)]
    if (end := _end(run)) is not None:
        parts.append(end)
    return Group(*parts)


def _headline(run: Json) -> Text:
    event = run["event"]
    text = Text()
    text.append(printable(run["function"]), style="bold")
    text.append(f"  {run['run_id']}  ")
    text.append(run["status"], style=status_style(run["status"]))
    text.append(f"\ncreated {short_instant(run['created_at'])}")
    if event is not None:
        text.append(f" by {printable(event['name'])} ({printable(event['id'])})")
    if run["attempt"] is not None and run["attempt"] > 1:
        text.append(f", attempt {run['attempt']} of the function")
    return text


@dataclass(frozen=True)
class _Span:
    """The parts of one stretch of a run's time, in seconds; `drawn_wait` is how long its wait is drawn."""

    app: float
    durable: float
    wait: float
    drawn_wait: float

    @property
    def drawn(self) -> float:
        return self.app + self.durable + self.drawn_wait


def _waterfall(run: Json) -> Table:
    steps: Sequence[Json] = run["steps"]
    committed = [step for step in steps if step.get("times") is not None]
    spans = _spans([step["times"] for step in committed] + [_tail_times(run)])
    total = sum(span.drawn for span in spans) or 1.0
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for name, justify in (
        ("", "right"),
        ("step", "left"),
        ("", "left"),
        ("app", "right"),
        ("waited", "right"),
        ("durable", "right"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column(f"{short_seconds(_life_seconds(run))} in all", no_wrap=True)
    offset = 0.0
    for step, span in zip(committed, spans, strict=False):
        table.add_row(
            str(step["position"]),
            _step_name(step),
            _status(step),
            short_seconds(span.app),
            short_seconds(span.wait) if span.wait > 0 else "",
            short_seconds(span.durable),
            _bar(span, offset / total, total),
        )
        offset += span.drawn
        _add_failures(table, step)
    for step in steps:
        if step.get("times") is None:
            table.add_row("", _step_name(step), _status(step), "", "", "", _until(step, run))
            _add_failures(table, step)
    if not run["ended_at"]:
        return table
    table.add_row(
        "", Text("end", style="dim"), "", "", "", short_seconds(spans[-1].durable), _bar(spans[-1], offset / total, total)
    )
    return table


def _spans(times: Sequence[Json]) -> list[_Span]:
    working = sum(each["app_seconds"] + each["durable_seconds"] for each in times)
    longest = max(working * WAIT_DRAWN_MAX, 0.001)
    return [
        _Span(
            each["app_seconds"],
            each["durable_seconds"],
            each["waited_seconds"],
            min(each["waited_seconds"], longest),
        )
        for each in times
    ]


def _tail_times(run: Json) -> Json:
    """What came after the last commit belongs to the drawing only once the run has ended."""
    return run["tail"] if run["ended_at"] else {"app_seconds": 0.0, "waited_seconds": 0.0, "durable_seconds": 0.0}


def _bar(span: _Span, offset: float, total: float) -> Text:
    """Durable first, then the wait, then the app: the order in which a step's time usually passes."""
    bar = Text(" " * min(int(offset * BAR_CHARACTERS), BAR_CHARACTERS - 1))
    for seconds, (character, style) in ((span.durable, _DURABLE), (span.drawn_wait, _WAIT), (span.app, _APP)):
        if seconds > 0:
            # At least one character: what took time is seen.
            bar.append(character * max(1, round(seconds / total * BAR_CHARACTERS)), style=style)
    bar.truncate(BAR_CHARACTERS + 2)
    return bar


def _step_name(step: Json) -> Text:
    name = Text(printable(step["id"]))
    if step["kind"] != "step":
        name.append(f"  {step['kind']}", style="dim")
    return name


def _status(step: Json) -> Text:
    word = step["status"]
    if word == "completed":
        return Text("✓" if step.get("attempt", 1) == 1 else f"✓ at attempt {step['attempt']}", style="green")
    return Text(word, style=status_style(word) or "dim")


def _until(step: Json, run: Json) -> Text:
    deadline, now = parse_instant(step.get("deadline_at")), parse_instant(run["read_at"])
    if deadline is None or now is None:
        return Text()
    left = short_seconds(max((deadline - now).total_seconds(), 0.0))
    if step["status"] == "retrying":
        return Text(f"attempt {step.get('attempt', 1)} in {left}", style="yellow")
    what = f"for {printable(step['event'])}, " if step.get("event") else ""
    return Text(f"{what}at most {left} more" if what else f"{left} more", style="blue")


def _add_failures(table: Table, step: Json) -> None:
    failures = [(failure["attempt"], failure["error"]) for failure in step.get("failed_attempts", ())]
    if step.get("error") is not None and step.get("attempt", 1) not in {attempt for attempt, _ in failures}:
        failures.append((step.get("attempt", 1), step["error"]))
    for attempt, error in failures:
        table.add_row("", Text(f"  attempt {attempt}: {_error_words(error)}", style="red"), "", "", "", "", "")


def _sums(run: Json) -> Text:
    times = [step["times"] for step in run["steps"] if step.get("times") is not None] + [run["tail"]]
    text = Text()
    for name, field, (character, style) in (
        ("app", "app_seconds", _APP),
        ("durable", "durable_seconds", _DURABLE),
        ("waited", "waited_seconds", _WAIT),
    ):
        seconds = sum(each[field] for each in times if run["ended_at"] or each is not run["tail"])
        if seconds > 0 or name != "waited":
            text.append(f"{character} ", style=style).append(f"{name} {short_seconds(seconds)}   ")
    invocations = len(run["invocations"])
    text.append(f"{invocations} invocation{'' if invocations == 1 else 's'}", style="dim")
    return text


def _end(run: Json) -> Text | None:
    if run["status"] == "completed":
        return Text("output ", style="green").append(_shortened(json.dumps(run["output"], ensure_ascii=False)), style="default")
    if run["status"] == "failed":
        return Text(_error_words(run["error"]), style="red")
    return None


def _error_words(error: Any) -> str:
    fields = error if isinstance(error, dict) else {}
    return _shortened(f"{fields.get('name', 'Error')}: {fields.get('message', '')}", 200)


def _shortened(text: str, characters_max: int = VALUE_CHARACTERS_MAX) -> str:
    text = printable(text)
    return text if len(text) <= characters_max else text[: characters_max - 1] + "…"


def _life_seconds(run: Json) -> float:
    created = parse_instant(run["created_at"])
    last = parse_instant(run["ended_at"] or run["read_at"])
    return max((last - created).total_seconds(), 0.0) if created is not None and last is not None else 0.0
