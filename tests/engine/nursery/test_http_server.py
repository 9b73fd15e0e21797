"""The HTTP server on real sockets: machine routes on lean connections, all else by Hypercorn, and what hostile or hasty clients do."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing

from engine.nursery import http_server, http_wire, machine_connection
from engine.nursery.task_tree import task_tree
from tests.engine.nursery.http_stand import (
    CLOSE,
    Stand,
    a_server,
    answer,
    hang_up,
    logged,
    post,
    read_answer,
    read_body,
    read_to_end,
)


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    async with a_server() as made:
        yield made


# A request and its answer ---------------------------------------------------------------------------------------------


async def test_a_machine_route_is_served_without_hypercorn_and_others_by_it(stand: Stand) -> None:
    assert (await stand.ask(post("/m/a?x=1", b"body", CLOSE))).endswith(b"\r\n\r\nPOST|/m/a|x=1|body")
    assert (await stand.ask(post("/p/a?x=1", b"body", CLOSE))).endswith(b"\r\n\r\nPOST|/p/a|x=1|body")
    assert stand.app.is_lean == [True, False]


async def test_both_servers_give_the_application_the_same_scope(stand: Stand) -> None:
    for path in ("/m/a?b=%20c", "/p/a?b=%20c"):
        await stand.ask(post(path, b"", CLOSE, "X-Name: Value"))
    lean, other = stand.app.scopes
    assert lean.keys() == other.keys()
    for key in lean.keys() - {"path", "raw_path", "client"}:
        assert lean[key] == other[key], key
    assert lean["client"][0] == other["client"][0]


async def test_a_connection_serves_request_after_request(stand: Stand) -> None:
    async with await stand.open() as stream:
        for n in range(5):
            await stream.send_all(post("/m/a", b"%d" % n))
            answer = await read_answer(stream)
            assert answer.endswith(b"|%d" % n) and answer.startswith(b"HTTP/1.1 200 OK\r\n") and b"connection" not in answer
            assert b"\r\ndate: " in answer


async def test_head_and_body_of_an_answer_leave_together(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    write = http_wire.HttpWire.write

    async def note(wire: http_wire.HttpWire, data: bytes) -> bool:
        written.append(data)
        return await write(wire, data)

    monkeypatch.setattr(http_wire.HttpWire, "write", note)
    await stand.ask(post("/m/a", b"x", CLOSE))
    assert len(written) == 1


async def test_requests_sent_ahead_are_answered_in_turn_whoever_they_are_for(stand: Stand) -> None:
    sent = [post("/m/a", b"1"), post("/m/a", b"2"), post("/p/a", b"3"), post("/m/a", b"4"), post("/m/a", b"5", CLOSE)]
    answers = await stand.ask(b"".join(sent))
    assert [answers.index(b"|%d" % n) for n in range(1, 6)] == sorted(answers.index(b"|%d" % n) for n in range(1, 6))
    assert stand.app.is_lean == [True, True, False, False, False]


async def test_requests_that_come_byte_by_byte_are_understood(stand: Stand) -> None:
    sent = post("/m/a", b"one") + post("/p/a", b"two", CLOSE)
    answers = await stand.ask(*(sent[n : n + 1] for n in range(len(sent))))
    assert b"POST|/m/a||one" in answers and answers.endswith(b"POST|/p/a||two")


async def test_a_kept_connection_that_asks_for_a_peoples_route_is_handed_over_then(stand: Stand) -> None:
    async with await stand.open() as stream:
        for path in ("/m/a", "/p/a", "/m/a", "/p/b"):
            await stream.send_all(post(path, b"x"))
            assert (await read_answer(stream)).endswith(b"POST|%b||x" % path.encode())
    assert stand.app.is_lean == [True, False, False, False]


async def test_a_body_in_chunks_is_read(stand: Stand) -> None:
    head = b"POST /m/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    assert (await stand.ask(head, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")).endswith(b"|abcde")


async def test_a_large_body_and_a_large_answer_come_whole(stand: Stand) -> None:
    body = b"0123456789" * 400_000
    assert (await stand.ask(post("/m/a", body, CLOSE))).endswith(b"|" + body)


async def test_a_body_is_asked_for_only_when_the_application_wants_it() -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"no", status=413)

    async with a_server(refuse=refuse) as stand:
        async with await stand.open() as stream:
            await stream.send_all(post("/m/a", b"x" * 9, "expect: 100-continue")[:-9])
            assert await stream.receive_some(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            await stream.send_all(b"y" * 9)
            assert (await read_answer(stream)).endswith(b"|" + b"y" * 9)
            await stream.send_all(post("/m/refuse", b"x" * 9, "expect: 100-continue")[:-9])
            refused = await read_to_end(stream)
            assert refused.startswith(b"HTTP/1.1 413 ") and b"connection: close" in refused


async def test_head_gets_the_headers_alone_and_the_connection_goes_on(stand: Stand) -> None:
    answers = await stand.ask(post("/m/a", method="HEAD") + post("/m/a", b"x", CLOSE))
    head, _, rest = answers.partition(b"\r\n\r\n")
    assert b"content-length: 11" in head and rest.startswith(b"HTTP/1.1 200 OK"), answers


async def test_http_1_0_is_answered_and_closed(stand: Stand) -> None:
    answer = await stand.ask(b"POST /m/a HTTP/1.0\r\ncontent-length: 1\r\n\r\nx")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b"|x")


async def test_an_answer_in_parts_is_streamed_and_the_connection_goes_on() -> None:
    async def stream_it(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one", b"", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async with a_server(stream=stream_it) as stand:
        answers = await stand.ask(post("/m/stream") + post("/m/a", b"x", CLOSE))
        assert b"transfer-encoding: chunked\r\n" in answers and b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\nHTTP/1.1 200" in answers
        old = await stand.ask(b"GET /m/stream HTTP/1.0\r\n\r\n")
        assert old.endswith(b"\r\n\r\nonetwo") and b"chunked" not in old


async def test_an_answer_before_the_end_of_the_body_closes_and_reaches_a_client_that_still_sends() -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"too much", status=413)

    async with a_server(refuse=refuse) as stand:
        answered = b""
        async with await stand.open() as stream:
            await stream.send_all(post("/m/refuse", b"x" * 3_000_000))
            while part := await stream.receive_some(65536):
                answered += part
        assert answered.startswith(b"HTTP/1.1 413 ") and answered.endswith(b"too much") and b"connection: close" in answered


async def test_a_body_that_nobody_read_but_that_is_there_keeps_the_connection() -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"no", status=405)

    async with a_server(refuse=refuse) as stand:
        answers = await stand.ask(post("/m/refuse", b"unread") + post("/m/a", b"x", CLOSE))
        assert answers.startswith(b"HTTP/1.1 405 ") and answers.endswith(b"|x")


# What is no good ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x00\xff\xfe\x80" * 64 + b"\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200, b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"\r\n\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 200_000, b"431"),
        (b"POST /m/a HTTP/1.1\r\n\r\n", b"400"),
        (b"POST /m/a HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n", b"400"),
        (b"POST /m/a HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n", b"400"),
        (b"POST /m/a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc", b"400"),
        (b"POST /m/a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", b"501"),
        (b"POST /m/a HTTP/1.1\r\nhost: x\r\nx: " + b"h" * 200_000, b"431"),
        (b"POST /m/a HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 40_000, b"431"),
        (b"POST /m/\xff HTTP/1.1\r\nhost: x\r\n\r\n", b"400"),
    ],
    ids=lambda value: repr(value[:50]),
)
async def test_bytes_that_are_no_good_http_get_a_4xx_and_the_end(stand: Stand, sent: bytes, status: bytes) -> None:
    answer = await stand.ask(sent)
    assert answer.startswith(b"HTTP/1.1 " + status + b" ") and b"connection: close" in answer.lower(), answer[:200]
    assert not stand.app.scopes


async def test_a_body_that_is_no_good_http_is_400() -> None:
    async def take(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async with a_server(take=take) as stand:
        sent = b"POST /m/take HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nnot a length\r\n"
        assert (await stand.ask(sent)).startswith(b"HTTP/1.1 400 ")


async def test_http_2_goes_to_hypercorn(stand: Stand) -> None:
    answer = b""
    async with await stand.open() as stream:
        await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        while len(answer) < 9:
            answer += await stream.receive_some(65536)
    assert answer[3] == 4, "its first frame is its settings"


async def test_an_offer_to_change_to_http_2_is_not_taken_on_a_machine_route(stand: Stand) -> None:
    offer = b"GET /m/a HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings, close\r\nupgrade: h2c\r\nhttp2-settings: AAAA\r\n\r\n"
    assert (await stand.ask(offer)).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("head", [b"", b"POST /m/", b"POST /m/a HTTP/1.1\r\nhost: x\r\n"])
async def test_clients_that_say_too_little_for_too_long_are_let_go(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    monkeypatch.setattr(machine_connection, "KEEP_ALIVE_SECONDS", 0.3 if not head else 1_000.0)
    monkeypatch.setattr(machine_connection, "HEAD_SECONDS_MAX", 0.3 if head else 1_000.0)
    async with a_server() as stand:
        async with await stand.open() as stream:
            await stream.send_all(post("/m/a", b"x"))
            await read_answer(stream)
            await stream.send_all(head)
            assert await read_to_end(stream) == b""


async def test_an_answer_may_take_longer_than_a_connection_may_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_connection, "KEEP_ALIVE_SECONDS", 0.2)

    async def think(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        await trio.sleep(0.5)
        await answer(send, b"thought")

    async with a_server(think=think) as stand:
        assert (await stand.ask(post("/m/think", b"x", CLOSE))).endswith(b"thought")


async def test_a_head_that_drips_is_bounded_from_its_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_connection, "HEAD_SECONDS_MAX", 0.5)
    async with a_server() as stand:
        stream = await stand.open()
        async with stream, trio.open_nursery() as nursery:

            async def drip() -> None:
                await stream.send_all(b"POST /m/a HTTP/1.1\r\nx: ")
                with suppress(trio.BrokenResourceError):
                    while True:
                        await stream.send_all(b"y")
                        await trio.sleep(0.02)

            nursery.start_soon(drip)
            assert await read_to_end(stream) == b""
            nursery.cancel_scope.cancel()


async def test_a_client_that_does_not_read_its_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_wire, "UNREAD_SECONDS_MAX", 0.3)
    is_done = trio.Event()

    async def pour(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"x" * (64 << 20))
        assert (await receive())["type"] == "http.disconnect"
        is_done.set()

    async with a_server(pour=pour) as stand:
        async with await stand.open() as stream:
            await stream.send_all(post("/m/pour"))
            await is_done.wait()


# Clients that go ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_rude", [False, True])
async def test_the_application_learns_of_a_client_that_hangs_up_in_a_long_poll(is_rude: bool) -> None:
    is_waiting, is_noticed = trio.Event(), trio.Event()

    async def poll(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        is_waiting.set()
        assert (await receive())["type"] == "http.disconnect"
        is_noticed.set()

    async with a_server(poll=poll) as stand:
        stream = await stand.open()
        await stream.send_all(post("/m/poll", b"x"))
        await is_waiting.wait()
        hang_up(stream, is_rude)
        await is_noticed.wait()


async def test_a_client_that_hangs_up_in_its_body_is_noticed() -> None:
    is_noticed = trio.Event()

    async def take(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        is_noticed.set()

    async with a_server(take=take) as stand:
        stream = await stand.open()
        await stream.send_all(post("/m/take", b"x" * 99)[:-50])
        hang_up(stream)
        await is_noticed.wait()


async def test_what_is_sent_ahead_during_a_long_poll_is_answered_after_it() -> None:
    goes_on = trio.Event()

    async def poll(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await goes_on.wait()
            nursery.cancel_scope.cancel()
        await answer(send, b"polled")

    async with a_server(poll=poll) as stand:
        async with await stand.open() as stream:
            await stream.send_all(post("/m/poll", b"x"))
            await stream.send_all(post("/m/a", b"ahead") + post("/m/a", b"y" * 200_000, CLOSE)[:100_000])
            await trio.testing.wait_all_tasks_blocked(0.05)
            goes_on.set()
            await stream.send_all(b"y" * (len(post("/m/a", b"y" * 200_000, CLOSE)) - 100_000))
            answers = await read_to_end(stream)
        assert answers.index(b"polled") < answers.index(b"|ahead") and answers.endswith(b"y" * 200_000)


# Faults of the application --------------------------------------------------------------------------------------------


async def test_a_fault_of_the_application_is_500_logged_and_nobody_elses() -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError("fault")

    async def fail_in_two(scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, scope, receive, send)
            nursery.start_soon(fail, scope, receive, send)

    async def say_nothing(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)

    async with a_server(fail=fail, group=fail_in_two, silent=say_nothing) as stand:
        other = await stand.open()
        with logged() as logs:
            for name in ("fail", "group", "silent"):
                failed = await stand.ask(post(f"/m/{name}", b"x"))
                assert failed.startswith(b"HTTP/1.1 500 ") and b"connection: close" in failed
        assert [log["target"] for log in logs] == ["/m/fail", "/m/group"]
        await other.send_all(post("/m/a", b"x"))
        assert (await read_answer(other)).endswith(b"|x")
        await other.aclose()


async def test_an_answer_that_breaks_off_ends_its_connection() -> None:
    async def start_only(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ZeroDivisionError("fault")

    async def lie(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": False})

    async def split(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"x", (b"a", b"b\r\nset-cookie: c"))

    async with a_server(half=start_only, lie=lie, split=split) as stand:
        with logged() as logs:
            half = await stand.ask(post("/m/half"))
            assert half.endswith(b"4\r\nhalf\r\n"), "without the end of its chunks"
            for name in ("lie", "split"):
                assert (await stand.ask(post(f"/m/{name}"))).startswith(b"HTTP/1.1 500 ")
        assert len(logs) == 3


async def test_a_fault_of_the_server_itself_ends_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_server() as stand:
        for broken in ("serve", "__init__"):
            with monkeypatch.context() as patch, logged() as logs:
                patch.setattr(machine_connection.MachineConnection, broken, lambda *args: 1 / 0)
                assert await stand.ask() == b""
            assert [log["event"] for log in logs] == ["connection_failed"]
        with monkeypatch.context() as patch, logged() as logs:
            patch.setattr("engine.nursery.people_connections.TCPServer", lambda *args: 1 / 0)
            assert await stand.ask(post("/p/a")) == b""
            assert [log["event"] for log in logs] == ["connection_failed"]
        assert (await stand.ask(post("/m/a", b"x", CLOSE))).endswith(b"|x")


# The end --------------------------------------------------------------------------------------------------------------


async def test_closing_ends_idle_connections_at_once_and_those_under_way_with_their_answer() -> None:
    is_asked, goes_on = trio.Event(), trio.Event()

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        is_asked.set()
        await goes_on.wait()
        await answer(send, b"late")

    async with a_server(wait=wait) as stand:
        idle, begun, fresh, peoples, busy = [await stand.open() for _ in range(5)]
        await idle.send_all(post("/m/a", b"x"))
        await read_answer(idle)
        await peoples.send_all(post("/p/a", b"x"))
        await read_answer(peoples)
        await begun.send_all(b"POST /m/a HTT")
        await busy.send_all(post("/m/wait", b"x") + post("/m/a", b"never answered"))
        await is_asked.wait()
        stand.closing.set()
        for stream in (idle, begun, fresh, peoples):
            assert await read_to_end(stream) == b""
        with pytest.raises(OSError):
            await stand.open()
        assert not stand.is_over.is_set()
        goes_on.set()
        last = await read_to_end(busy)
        assert last.endswith(b"late") and b"connection: close\r\n" in last and last.count(b"HTTP/1.1") == 1
        await stand.is_over.wait()


async def test_closing_between_an_answer_and_the_next_request_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "GRACEFUL_SECONDS_MAX", 1_000)

    async def close_then(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"x")
        stand.closing.set()
        await trio.testing.wait_all_tasks_blocked(0.05)

    async with a_server(close=close_then) as stand:
        async with await stand.open() as stream:
            await stream.send_all(post("/m/close"))
            assert (await read_answer(stream)).endswith(b"x")
            assert await read_to_end(stream) == b""
            await stand.is_over.wait()


async def test_closing_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "GRACEFUL_SECONDS_MAX", 0.2)
    is_asked = trio.Event()

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        is_asked.set()
        await trio.sleep_forever()

    async with a_server(wait=wait) as stand:
        async with await stand.open() as stream:
            await stream.send_all(post("/m/wait"))
            await is_asked.wait()
            stand.closing.set()
            assert await read_to_end(stream) == b""
            await stand.is_over.wait()


async def test_connections_have_their_place_in_the_task_tree(stand: Stand) -> None:
    async with await stand.open() as machine, await stand.open() as person:
        for stream, path in ((machine, "/m/a"), (person, "/p/a")):
            await stream.send_all(post(path))
            await read_answer(stream)
        [http] = named(task_tree(trio.lowlevel.current_root_task()), "http")
        assert [task["name"] for task in http["tasks"]] == ["connection", "connection"]


def named(tree: Any, name: str) -> list[Any]:
    found = [nursery for nursery in tree["nurseries"] if nursery["name"] == name]
    for nursery in tree["nurseries"]:
        for task in nursery["tasks"]:
            found += named(task, name)
    return found


async def test_small_answers_do_not_wait_for_company(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    make = http_wire.HttpWire.__init__

    def note(wire: http_wire.HttpWire, sock: socket.socket) -> None:
        seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        make(wire, sock)

    monkeypatch.setattr(http_wire.HttpWire, "__init__", note)
    await stand.ask(post("/m/a", b"x", CLOSE))
    assert seen and all(seen)
