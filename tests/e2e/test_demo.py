"""The demo as somebody runs it who has just cloned the repository: no home, no settings, nothing installed but the venv."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.processes import ROOT

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

DEMO_SECONDS_MAX = 100.0


def test_the_demo_runs_once_shows_its_trace_and_sends_one_mail(new_home: Path, new_environment: dict[str, str]) -> None:
    place = new_home / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "examples.onboarding.demo", "--once"],
        cwd=ROOT, env={**new_environment, "DEMO_DIR": str(place)}, capture_output=True, text=True, timeout=DEMO_SECONDS_MAX,
    )  # fmt: skip
    said = done.stdout
    assert done.returncode == 0, f"{said}\n{done.stderr}"
    mails = re.split(r"(?m)^From: ", (place / "mail.txt").read_text())[1:]
    assert len(mails) == 1, mails
    assert "To: ada@example.com" in mails[0] and "Subject: Welcome, Ada!" in mails[0]
    for step in ("load-user", "cooldown", "approve", "send-email"):
        assert step in said, said
    assert "completed" in said and '"approved": true' in said.replace('"approved":true', '"approved": true'), said
    # The trace says whose each time was.
    assert re.search(r"(?i)\bapp\b.*\d", said) and re.search(r"(?i)\bdurable\b.*\d+(\.\d+)? ?(ms|s)\b", said), said
    assert "Traceback" not in said + done.stderr, "nobody should see one"
    left = _processes_with(str(place))
    assert not left, f"the demo left processes behind: {left}"
    assert set(os.listdir(new_home)) <= {"demo"}, "it writes nowhere else"


def _processes_with(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if text in words:
                found.append(words)
    return found
