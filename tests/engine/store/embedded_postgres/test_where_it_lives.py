"""Where the embedded Postgres lives: homes, named directories, programs, as root and as an ordinary user."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import sys
from pathlib import Path

import pytest

from engine.store import postgres_account
from engine.store.embedded_postgres_error import EmbeddedPostgresError
from engine.store.postgres_account import account_for, can_run
from engine.store.postgres_binaries import reachable_binaries
from engine.store.socket_dir import make_socket_dir, socket_dir_for
from tests.engine.store.embedded_postgres.engine_processes import (
    NOBODY,
    Starter,
    closed_wheel,
    is_alive,
    owner_and_mode,
    owner_of_process,
    query,
    share_with_nobody,
    wheel_for_nobody,
)

pytestmark = pytest.mark.postgres
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="shows what happens to root")


def test_the_default_is_in_the_home_and_data_survives_a_restart(starter: Starter) -> None:
    engine = starter.open()
    opened = engine.lines[0]
    assert opened["data_dir"] == str(starter.place / "home" / ".durable" / "pgdata")
    assert opened["system_user"] == ("durable" if os.geteuid() == 0 else None)
    query(opened, "CREATE TABLE kept AS SELECT 7 AS n")
    assert engine.close_input() == 0
    assert not is_alive(opened["pid"])
    again = starter.open().lines[0]
    assert query(again, "SELECT n FROM kept") == "7"
    assert again["seconds"] < 1.0, "a start on existing data must be fast"


def test_durable_home_is_taken_instead_of_the_home(starter: Starter) -> None:
    starter.environment["DURABLE_HOME"] = str(starter.place / "elsewhere")
    assert starter.open().lines[0]["data_dir"] == str(starter.place / "elsewhere" / "pgdata")


@as_root
def test_a_home_that_keeps_the_system_user_out_moves_the_default_and_says_so(starter: Starter) -> None:
    home = starter.place / "home"
    home.chmod(0o700)
    before = owner_and_mode(home)
    engine = starter.open()
    opened = engine.lines[0]
    assert opened["data_dir"].startswith(str(starter.place / "machine"))
    assert any(str(home) in note and "0700" in note for note in opened["notes"])
    query(opened, "CREATE TABLE kept AS SELECT 7 AS n")
    engine.close_input()
    assert owner_and_mode(home) == before
    assert list(home.iterdir()) == []
    # The home is opened later: the data must still be found.
    home.chmod(0o755)
    again = starter.open().lines[0]
    assert again["data_dir"] == opened["data_dir"]
    assert query(again, "SELECT n FROM kept") == "7"


@as_root
def test_two_closed_homes_do_not_share_a_database(starter: Starter) -> None:
    data_dirs = []
    for name in ("one", "two"):
        home = starter.place / name
        home.mkdir(mode=0o700)
        starter.environment["HOME"] = str(home)
        data_dirs.append(starter.open().lines[0]["data_dir"])
    assert data_dirs[0] != data_dirs[1]


@as_root
def test_a_closed_home_with_data_in_it_is_refused_and_not_left_behind(starter: Starter) -> None:
    starter.open().close_input()
    (starter.place / "home").chmod(0o700)
    line = starter.refused()
    assert line["error"] == "data_dir_unreachable"
    assert f"chmod o+x {starter.place / 'home'}" in line["message"]


@as_root
def test_a_named_directory_that_the_system_user_can_not_reach_is_refused(starter: Starter) -> None:
    closed = starter.place / "closed"
    closed.mkdir(mode=0o700)
    line = starter.refused("--data-dir", str(closed / "deep" / "data"))
    assert line["error"] == "data_dir_unreachable"
    assert str(closed) in line["message"] and "--data-dir" in line["message"]
    assert list(closed.iterdir()) == []


@as_root
def test_modes_and_owners_of_existing_directories_stay_as_they_were(starter: Starter) -> None:
    above = starter.place / "above" / "below"
    above.mkdir(parents=True)
    (starter.place / "above").chmod(0o751)
    above.chmod(0o2755)
    os.chown(above, NOBODY, NOBODY)
    watched = [above, *above.parents]
    before = [owner_and_mode(path) for path in watched]
    starter.open("--data-dir", str(above / "data")).close_input()
    starter.open("--data-dir", str(above / "data")).close_input()
    assert [owner_and_mode(path) for path in watched] == before
    assert stat.S_IMODE((above / "data").stat().st_mode) == 0o700


@as_root
def test_root_runs_old_data_as_its_owner(starter: Starter) -> None:
    share_with_nobody(starter.place / "home")
    reachable = wheel_for_nobody(starter.place)
    starter.open(*reachable, "--as-uid", str(NOBODY)).close_input()
    data_dir = starter.place / "home" / ".durable" / "pgdata"
    owner = pwd.getpwuid(NOBODY).pw_name
    (starter.place / "home" / ".durable").chmod(0o755)
    opened = starter.open().lines[0]
    assert (opened["data_dir"], opened["system_user"]) == (str(data_dir), owner)


@as_root
def test_an_ordinary_user_runs_it_as_itself(starter: Starter) -> None:
    share_with_nobody(starter.place / "home")
    reachable = wheel_for_nobody(starter.place)
    engine = starter.open(*reachable, "--as-uid", str(NOBODY))
    opened = engine.lines[0]
    assert opened["system_user"] is None and opened["notes"] == []
    assert owner_of_process(opened["pid"]) == NOBODY
    assert stat.S_IMODE((starter.place / "home" / ".durable").stat().st_mode) == 0o700
    assert engine.close_input() == 0


@as_root
def test_an_ordinary_user_is_told_which_directory_it_may_not_enter(starter: Starter) -> None:
    reachable = wheel_for_nobody(starter.place)
    closed = starter.place / "closed"
    closed.mkdir(mode=0o700)
    line = starter.refused(*reachable, "--as-uid", str(NOBODY), "--data-dir", str(closed / "a" / "b"))
    assert line["error"] == "data_dir_unreachable" and str(closed) in line["message"]
    line = starter.refused(*reachable, "--as-uid", str(NOBODY), "--data-dir", str(starter.place / "data"))
    assert line["error"] == "no_permission" and "--data-dir" in line["message"]


def test_a_path_too_long_for_a_socket_puts_it_into_tmp_and_removes_it_again(starter: Starter) -> None:
    engine = starter.open("--data-dir", str(starter.place / ("long" * 25) / "data"))
    socket_dir = Path(engine.lines[0]["socket_dir"])
    assert socket_dir.parent == Path("/tmp") and stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    assert query(engine.lines[0], "SELECT 1") == "1"
    engine.close_input()
    assert not socket_dir.exists()


@as_root
def test_a_socket_directory_that_someone_else_made_is_refused(place: Path) -> None:
    account = account_for(place / "data")
    data_dir = place / ("long" * 30)
    socket_dir = socket_dir_for(data_dir, account)
    socket_dir.mkdir(mode=0o777)
    try:
        with pytest.raises(EmbeddedPostgresError, match="not a private directory"):
            make_socket_dir(socket_dir, data_dir, account)
    finally:
        socket_dir.rmdir()


@as_root
def test_a_virtual_environment_that_the_system_user_can_not_reach_is_copied_once(starter: Starter) -> None:
    closed = closed_wheel(starter.place)
    before = {path: owner_and_mode(path) for path in (closed, *closed.rglob("*"))}
    first = starter.start("--wheel-at", str(closed), "--data-dir", starter.data("one"))
    second = starter.start("--wheel-at", str(closed), "--data-dir", starter.data("two"))
    opened = [first.next_line(), second.next_line()]
    copies = [path for path in (starter.place / "machine").iterdir() if path.is_dir()]
    assert len(copies) == 1, "two at once made one copy"
    for line in opened:
        assert line["program"].startswith(str(copies[0]))
        assert any(str(copies[0]) in note for note in line["notes"])
        assert query(line, "SELECT 1") == "1"
    assert {path: owner_and_mode(path) for path in (closed, *closed.rglob("*"))} == before


@as_root
def test_a_copy_that_was_interrupted_is_made_anew(place: Path) -> None:
    machine = place / "machine"
    closed = closed_wheel(place)
    account = account_for(place / "data")
    sys.path.insert(0, str(closed))
    try:
        copy = reachable_binaries(account, machine).root
        # As if the copier had been killed half way.
        half = copy.with_name(f".{copy.name}.unfinished")
        copy.rename(half)
        (half / "pgserver" / "pginstall" / "bin" / "postgres").unlink()
        again = reachable_binaries(account, machine)
    finally:
        sys.path.remove(str(closed))
    assert again.root == copy and can_run(account, again.postgres)
    assert not half.exists()


@as_root
def test_a_missing_useradd_is_a_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setattr(postgres_account, "SYSTEM_USER", "durable-that-is-not-there")
    monkeypatch.setattr(postgres_account, "program_environment", lambda: {"PATH": str(place)})
    with pytest.raises(EmbeddedPostgresError, match="useradd --system --no-create-home") as refused:
        account_for(place / "data")
    assert refused.value.code == "no_system_user"


def test_data_of_another_postgres_version_is_refused_untouched(starter: Starter) -> None:
    data = Path(starter.data())
    (data / "PG_VERSION").write_text("15\n")
    line = starter.refused("--data-dir", str(data))
    assert line["error"] == "other_postgres_version"
    assert "Postgres 15" in line["message"] and "16" in line["message"]
    assert (data / "PG_VERSION").read_text() == "15\n"


def test_a_directory_with_other_things_in_it_is_left_alone(starter: Starter) -> None:
    data = starter.place / "data"
    data.mkdir()
    (data / "holiday.jpg").write_text("sun")
    if os.geteuid() == 0:
        shutil.chown(data, "durable", "durable")
    line = starter.refused("--data-dir", str(data))
    assert line["error"] == "not_a_data_dir" and f"{data}/pgdata" in line["message"]
    assert (data / "holiday.jpg").read_text() == "sun"


def test_an_empty_directory_is_used_only_if_its_owner_and_mode_fit(starter: Starter) -> None:
    data = starter.place / "data"
    data.mkdir()
    data.chmod(0o755)
    before = owner_and_mode(data)
    line = starter.refused("--data-dir", str(data))
    assert line["error"] == "not_a_data_dir" and f"--data-dir {data}/pgdata" in line["message"]
    assert owner_and_mode(data) == before
    assert "pid" in starter.open("--data-dir", str(data / "pgdata")).lines[0]


def test_an_empty_private_directory_of_the_account_is_used(starter: Starter) -> None:
    data = starter.place / "data"
    data.mkdir(mode=0o700)
    if os.geteuid() == 0:
        shutil.chown(data, "durable", "durable")
    before = owner_and_mode(data)
    starter.open("--data-dir", str(data))
    assert owner_and_mode(data) == before


def test_the_data_directory_can_not_be_a_file(starter: Starter) -> None:
    (starter.place / "data").write_text("")
    assert starter.refused("--data-dir", str(starter.place / "data"))["error"] == "not_a_data_dir"


@as_root
def test_data_of_root_is_refused_with_the_command_that_mends_it(starter: Starter) -> None:
    data = starter.place / "data"
    data.mkdir(mode=0o700)
    (data / "PG_VERSION").write_text("16\n")
    line = starter.refused("--data-dir", str(data))
    assert line["error"] == "owned_by_root" and f"chown -R durable: {data}" in line["message"]


def test_a_name_with_a_line_break_is_refused(starter: Starter) -> None:
    assert starter.refused("--data-dir", str(starter.place / "da\nta"))["error"] == "not_a_data_dir"


def test_odd_names_work(starter: Starter) -> None:
    engine = starter.open("--data-dir", starter.data('it\'s, "odd" $HOME; é %2F'))
    assert query(engine.lines[0], "SELECT 1") == "1"
    assert engine.close_input() == 0
