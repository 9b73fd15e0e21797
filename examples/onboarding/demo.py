"""The demo: an engine, the app and a mail server as real processes, one run from its event to its end, and its trace.

`python -m examples.onboarding.demo --once` ends when the run has completed; without `--once` everything stays up for you to try.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLACE = Path(os.environ.get("DEMO_DIR", ".demo")).resolve()
COMMANDS = Path(sys.executable).parent
START_SECONDS_MAX = 90.0
RUN_SECONDS_MAX = 60.0


def main() -> int:
    """Run the demo; the process's exit code."""
    parser = argparse.ArgumentParser(description="Run the onboarding example from its event to its end.")
    parser.add_argument("--once", action="store_true", help="stop everything when the run has completed")
    once: bool = parser.parse_args().once
    PLACE.mkdir(exist_ok=True)
    engine_port, app_port, mail_port = free_ports(3)
    environment = {
        **os.environ,
        "DURABLE_HOME": str(PLACE / "durable"),
        "DURABLE_ENV": "dev",
        "DURABLE_URL": f"http://127.0.0.1:{engine_port}",
        "USERS_DB": str(PLACE / "users.sqlite3"),
        "SMTP_PORT": str(mail_port),
        "ONBOARDING_COOLDOWN": os.environ.get("ONBOARDING_COOLDOWN", "2s"),
        "ONBOARDING_APPROVAL_TIMEOUT": os.environ.get("ONBOARDING_APPROVAL_TIMEOUT", "30s"),
        "PYTHONUNBUFFERED": "1",
    }
    os.environ.update(environment)
    app_url = f"http://127.0.0.1:{app_port}/"
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes.append(
            start("smtp", [sys.executable, "-m", "examples.onboarding.smtp_sink", str(mail_port), str(PLACE / "mail.txt")])
        )
        processes.append(
            start(
                "app",
                [
                    str(COMMANDS / "hypercorn"),
                    "--log-level",
                    "warning",
                    "--bind",
                    f"127.0.0.1:{app_port}",
                    "examples.onboarding.app:asgi",
                ],
            )
        )
        processes.append(start("engine", [str(COMMANDS / "durable"), "dev", "--port", str(engine_port), "--app-url", app_url]))
        return play(processes, once=once)
    except KeyboardInterrupt:
        return 0
    finally:
        stop(processes)


def play(processes: list[subprocess.Popen[bytes]], *, once: bool) -> int:
    """One user signs up, is approved, and gets a mail."""
    from examples.onboarding.app import app
    from examples.onboarding.users import add_user

    wait_until(
        "the engine has found the app", lambda: bool(durable_json("function", "list", quiet=True)), processes, START_SECONDS_MAX
    )
    user_id = int(time.time())
    add_user(user_id, "Ada", "ada@example.com")
    tell(f"Sending    user.created for user {user_id}")
    [answer] = asyncio.run(app.send_many([{"name": "user.created", "data": {"id": user_id, "tenantId": "a"}}]))
    run_id = answer.runs[0].run_id
    tell(f"Run        {run_id}")
    wait_until("the run waits for its approval", lambda: waits_for_approval(run_id), processes, RUN_SECONDS_MAX)
    tell("Approving  with the event approval.received")
    subprocess.run(
        [COMMANDS / "durable", "event", "send", "approval.received", json.dumps({"userId": user_id})],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    wait_until(
        "the run has ended", lambda: shown(run_id)["status"] in ("completed", "failed", "cancelled"), processes, RUN_SECONDS_MAX
    )
    subprocess.run([COMMANDS / "durable", "run", "show", run_id], check=True)
    status = shown(run_id)["status"]
    if once:
        return 0 if status == "completed" else 1
    tell("")
    tell("Everything is still up. In another terminal:")
    tell(f"  export DURABLE_HOME={os.environ['DURABLE_HOME']} DURABLE_URL={os.environ['DURABLE_URL']}")
    tell(f'  {COMMANDS}/durable event send user.created \'{{"id": {user_id}, "tenantId": "a"}}\'')
    tell(f"  {COMMANDS}/durable run list")
    tell("Ctrl-C ends the demo.")
    while all(process.poll() is None for process in processes):
        time.sleep(0.5)
    return 1


def waits_for_approval(run_id: str) -> bool:
    return any(step["id"] == "approve" and step["status"] == "waiting" for step in shown(run_id)["steps"])


def shown(run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = durable_json("run", "show", run_id)
    return run


def durable_json(*arguments: str, quiet: bool = False) -> Any:
    """What a `durable` command answers, as JSON; None when it refuses and that is no news."""
    done = subprocess.run([COMMANDS / "durable", *arguments, "-o", "json"], capture_output=True, check=False)
    if done.returncode != 0:
        if quiet:
            return None
        raise SystemExit(f"durable {' '.join(arguments)}: {done.stderr.decode().strip()}")
    return json.loads(done.stdout)


def wait_until(what: str, is_so: Callable[[], bool], processes: list[subprocess.Popen[bytes]], seconds_max: float) -> None:
    """Look until it is so. A process that ended, or too much time, ends the demo with the reason."""
    give_up_at = time.monotonic() + seconds_max
    while not is_so():
        for process in processes:
            if process.poll() is not None:
                raise SystemExit(f"A process of the demo ended with {process.returncode}: {process.args!r}")
        if time.monotonic() > give_up_at:
            raise SystemExit(f"After {seconds_max:g} seconds it still is not so that {what}.")
        time.sleep(0.1)


def start(name: str, command: list[str]) -> subprocess.Popen[bytes]:
    """Start a process of the demo. What it prints is part of the demo."""
    if shutil.which(command[0]) is None:
        raise SystemExit(f"{command[0]} is missing; run `make setup`.")
    return subprocess.Popen(command)


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """End what was started, the engine first."""
    for process in reversed(processes):
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
