"""Kills at any time, and what they leave: orphans, stale files, half a cluster, a full disk."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from engine.store.data_dir_lock import hold_data_dir
from engine.store.postgres_account import Account
from tests.engine.store.embedded_postgres.engine_processes import (
    Starter,
    is_alive,
    kill,
    leave_pid_file,
    processes_below,
    query,
    until,
)

pytestmark = pytest.mark.postgres
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="shows what happens to root")


def test_postgres_left_by_a_killed_engine_is_adopted_and_stopped_at_the_end(starter: Starter) -> None:
    data = starter.data()
    killed = starter.open("--data-dir", data)
    query(killed.lines[0], "CREATE TABLE kept AS SELECT 7 AS n")
    kill(killed.process.pid)
    killed.process.wait()
    orphan = killed.lines[0]["pid"]
    assert is_alive(orphan), "Postgres outlives the engine"
    engine = starter.open("--data-dir", data)
    opened = engine.lines[0]
    assert (opened["pid"], opened["adopted"]) == (orphan, True)
    assert opened["seconds"] < 1.0
    assert query(opened, "SELECT n FROM kept") == "7"
    assert engine.close_input() == 0
    assert not is_alive(orphan)


def test_an_orphan_with_other_settings_is_replaced(starter: Starter) -> None:
    data = starter.data()
    killed = starter.open("--data-dir", data)
    kill(killed.process.pid)
    killed.process.wait()
    opened = starter.open("--data-dir", data, "--fsync").lines[0]
    assert opened["pid"] != killed.lines[0]["pid"] and not opened["adopted"]
    assert query(opened, "SHOW fsync") == "on"


@pytest.mark.parametrize("adopted", [False, True])
def test_a_killed_postmaster_is_started_again_with_all_committed_rows(starter: Starter, adopted: bool) -> None:
    data = starter.data()
    engine = starter.open("--data-dir", data)
    if adopted:
        kill(engine.process.pid)
        engine.process.wait()
        engine = starter.open("--data-dir", data)
        assert engine.lines[0]["adopted"]
    for number in range(3):
        pid = engine.lines[-1]["pid"]
        query(engine.lines[-1], f"CREATE TABLE kept_{number} ()")
        kill(pid)
        restarted = engine.next_line()
        assert restarted["pid"] != pid
        assert query(restarted, "SELECT count(*) FROM pg_class WHERE relname LIKE 'kept%'") == str(number + 1)
    assert engine.close_input() == 0
    assert not is_alive(engine.lines[-2]["pid"])


def test_a_second_engine_is_refused_and_told_the_process_id_of_the_first(starter: Starter) -> None:
    data = starter.data()
    first = starter.open("--data-dir", data)
    line = starter.refused("--data-dir", data)
    assert line["error"] == "data_dir_in_use"
    assert f"process {first.process.pid}" in line["message"] and "--data-dir" in line["message"]
    # By another name it is still the same directory.
    (starter.place / "link").symlink_to(starter.place)
    assert starter.refused("--data-dir", str(starter.place / "link" / "data"))["error"] == "data_dir_in_use"
    assert query(first.lines[0], "SELECT 1") == "1", "the first goes on"
    first.close_input()
    assert "pid" in starter.open("--data-dir", data).lines[0]


def test_postgres_does_not_inherit_the_lock(place: Path) -> None:
    account = Account(os.geteuid(), os.getegid(), None)
    with hold_data_dir(place / "data", account):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with hold_data_dir(place / "data", account):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_stale_pid_file_whose_id_another_process_got_is_removed(starter: Starter) -> None:
    data = Path(starter.data())
    owner = data.stat()
    sleeper = (
        subprocess.Popen(["sleep", "60"], user=owner.st_uid, group=owner.st_gid, extra_groups=[])
        if (os.geteuid() == 0)
        else subprocess.Popen(["sleep", "60"])
    )
    try:
        leave_pid_file(data, sleeper.pid)
        opened = starter.open("--data-dir", str(data)).lines[0]
        assert opened["pid"] != sleeper.pid and not opened["adopted"]
        assert sleeper.poll() is None, "the process with that id is not ours to stop"
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_stale_pid_file_that_names_the_postgres_of_other_data_adopts_nothing(starter: Starter) -> None:
    data = Path(starter.data())
    other = starter.open("--data-dir", starter.data("other"))
    leave_pid_file(data, other.lines[0]["pid"])
    opened = starter.open("--data-dir", str(data)).lines[0]
    assert opened["pid"] != other.lines[0]["pid"]
    assert query(other.lines[0], "SELECT 1") == "1"


def test_a_stale_pid_file_of_a_dead_process_is_overwritten(starter: Starter) -> None:
    data = Path(starter.data())
    engine = starter.open("--data-dir", str(data))
    kill(engine.process.pid)
    engine.process.wait()
    kill(engine.lines[0]["pid"])
    until(lambda: not is_alive(engine.lines[0]["pid"]))
    assert (data / "postmaster.pid").exists()
    assert not starter.open("--data-dir", str(data)).lines[0]["adopted"]


def test_a_crash_in_the_middle_of_initdb_is_recovered(starter: Starter) -> None:
    data = starter.place / "data"
    engine = starter.start("--data-dir", str(data), "--fsync")
    until(lambda: any(starter.place.glob(".data.unfinished-*/base")))
    kill(engine.process.pid)
    engine.process.wait()
    assert not data.exists(), "half a cluster is never in place"
    assert query(starter.open("--data-dir", str(data)).lines[0], "SELECT current_database()") == "durable"
    # The initdb that the killed engine left ends by itself; what it wrote last goes at the next start.
    until(lambda: not any(".unfinished-" in word for command in processes_below(starter.place) for word in command))
    starter.engines[-1].close_input()
    starter.open("--data-dir", str(data))
    assert not any(starter.place.glob(".data.unfinished-*"))


@as_root
def test_a_full_disk_is_a_sentence_and_leaves_nothing(starter: Starter) -> None:
    disk = starter.place / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,mode=755", "none", str(disk)]).returncode != 0:
        pytest.skip("no permission to mount a small disk here")
    try:
        line = starter.refused("--data-dir", str(disk / "data"))
        assert line["error"] == "disk_full" and "Free some space" in line["message"]
        assert [path.name for path in disk.iterdir()] == ["data.lock"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
