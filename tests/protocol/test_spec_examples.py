"""Every JSON example of SPEC.md, taken out of the page and held against schema and decoder, so that the page can not rot."""

import json
import re
from collections import Counter

import pytest

from protocol import limits, messages
from tests.protocol.vector_files import PROTOCOL, validator

SPEC = (PROTOCOL / "SPEC.md").read_text(encoding="utf-8")
RUN = "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10"
WORKSPACE = '{"app":"shop","env":"dev"}'
DECODERS = {
    "manifest_question.json": messages.decode_call,
    "manifest.json": messages.decode_manifest,
    "invoke.json": messages.decode_call,
    "started.json": messages.decode_line,
    "ended.json": messages.decode_line,
    "checkpoint.json": messages.decode_checkpoint,
    "checkpoint_answer.json": messages.decode_checkpoint_answer,
    "events.json": messages.decode_events,
    "events_answer.json": messages.decode_events_answer,
    "start.json": messages.decode_start,
    "start_answer.json": messages.decode_start_answer,
    "result.json": messages.decode_result,
    "result_answer.json": messages.decode_result_answer,
    "sync.json": messages.decode_sync,
    "sync_answer.json": messages.decode_sync_answer,
    "alive.json": messages.decode_alive,
    "alive_answer.json": messages.decode_alive_answer,
    "values.json": messages.decode_values,
    "values_answer.json": messages.decode_values_answer,
}


def examples() -> list[str]:
    """The messages in the ```json fences, answers after `→` apart, with the page's ellipses filled in."""
    found: list[str] = []
    for block in re.findall(r"^```json\n(.*?)^```", SPEC, re.DOTALL | re.MULTILINE):
        for part in re.split(r"\s→\s|\n(?=\{)", block):
            if part.strip():
                found.append(_filled(part.strip()))
    return found


def _filled(text: str) -> str:
    manifest = re.search(r'^\{"type":"manifest","workspace":\{"app":"shop".*?\]\}$', SPEC, re.DOTALL | re.MULTILINE)
    assert manifest is not None
    for short, long in [
        ('"0199…"', f'"{RUN}"'), ('"workspace":{…}', f'"workspace":{WORKSPACE}'), ("{…as in 4.1…}", manifest[0]),
        ('"data":{…}', '"data":{"name":"x","data":{}}'), ('"output":{…}', '"output":{}'), ("[ … ]", "[]"), ("[…]", "[]"),
        ('"3f2a…"', '"3f2a"'), ('"00-…"', '"00-ab-cd-01"'),
    ]:  # fmt: skip
        text = text.replace(short, long)
    return text


def schema_of(text: str) -> str:
    message = json.loads(text)
    kind = message["type"]
    if kind == "manifest":
        return "manifest.json" if "functions" in message else "manifest_question.json"
    is_request = "workspace" in message or kind in ("started", "ended")
    return f"{kind}.json" if is_request else f"{kind}_answer.json"


@pytest.mark.parametrize("text", examples(), ids=lambda text: text[:40])
def test_an_example_of_the_page_is_true_to_its_schema_and_is_read(text: str) -> None:
    assert "…" not in text, "the test does not know how to fill in this ellipsis"
    schema = schema_of(text)
    validator(schema).validate(json.loads(text))
    decoded = DECODERS[schema](text.encode())
    assert not isinstance(decoded, messages.RefusedEntry)


def test_the_page_shows_every_message() -> None:
    assert set(Counter(schema_of(text) for text in examples())) == set(DECODERS)


def test_the_table_of_ops_names_the_ops_that_exist_with_their_fields() -> None:
    table = SPEC.split("## 5. Ops")[1].split("\n\n")[1]
    rows = dict(re.findall(r"^\| `(\w+)`\s*\| (.*?)\s*\|", table, re.MULTILINE))
    structs = {struct.__struct_config__.tag: struct for struct in messages.Op.__args__}
    assert set(rows) == set(structs)
    for word, struct in structs.items():
        shown = {name.rstrip("?") for name in re.findall(r"`(\w+\??)`", rows[word])} - {"step"}
        fields = set(struct.__struct_encode_fields__)
        assert shown <= fields, word
        assert fields - shown <= ({"attempt", "started_at", "duration_seconds", "seen"} if word == "step_error" else set())


def test_the_limits_of_the_page_are_the_limits_of_the_package() -> None:
    for sentence, number in [
        ("event 1 MiB", limits.EVENT_BYTES_MAX == 1 << 20),
        ("step result 4 MiB", limits.STEP_RESULT_BYTES_MAX == 4 << 20),
        ("any other body 64 MiB", limits.BODY_BYTES_MAX == 64 << 20),
        ("needs no more than 4 MiB", limits.CALL_BYTES_MAX == 4 << 20),
        ("values of 64 KiB and more", limits.REF_BYTES_MIN == 64 << 10),
        ("10,000 runs a poll", limits.ALIVE_RUNS_MAX == 10_000),
        ("1,000 values a request", limits.REFS_PER_MESSAGE_MAX == 1_000),
        ("1–128 printable ASCII", limits.REF_CHARACTERS_MAX == 128),
        ("1,000 events a request", limits.EVENTS_PER_MESSAGE_MAX == 1000),
        ("10,000 memo entries a run", limits.MEMO_ENTRIES_MAX == 10_000),
        ("at most 64 KiB", limits.ERROR_BYTES_MAX == 64 << 10),
        ("more than 300 s away", limits.SIGNATURE_AGE_SECONDS_MAX == 300),
        ("nest deeper than 100", limits.PAYLOAD_DEPTH_MAX == 100),
    ]:
        assert sentence in " ".join(SPEC.split()) and number, sentence


def test_the_pages_and_files_that_the_pages_name_exist_and_no_vector_is_left_out() -> None:
    conformance = (PROTOCOL / "CONFORMANCE.md").read_text(encoding="utf-8")
    for name in [*re.findall(r"\]\((\w+\.md)\)", SPEC), *re.findall(r"`((?:vectors|schema)/\w+\.json)`", SPEC + conformance)]:
        assert (PROTOCOL / name).is_file(), name
    for path in (PROTOCOL / "vectors").glob("*.json"):
        assert f"`vectors/{path.name}`" in conformance


def test_every_vector_file_begins_by_saying_how_to_read_it() -> None:
    for path in (PROTOCOL / "vectors").glob("*.json"):
        first, about = next(iter(json.loads(path.read_text(encoding="utf-8")).items()))
        assert first == "about" and len(about) > 80, path.name


def test_the_requirements_of_the_conformance_page_are_numbered_without_gaps() -> None:
    conformance = (PROTOCOL / "CONFORMANCE.md").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", conformance, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
