"""Connections that send nothing, or slowly, keep nobody else out of the monitor; over real sockets."""

import socket
import time
from contextlib import ExitStack

import psutil
import pytest

from oddsmith.monitor.server import make_app
from oddsmith.system import web_connections
from oddsmith.system.web_connections import MAX_CONNECTIONS, MAX_CONNECTIONS_OF_ADDRESS, _network
from tests.servers import in_thread
from tests.unit.monitor.run_folders import line, make_run

GOOD = b"GET /api/runs HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture
def port(tmp_path):
    make_run(tmp_path / "run", line("start", 0), line("log", 1, loss=1.0))
    with in_thread(make_app([tmp_path])) as port:
        yield port


def status(connection: socket.socket) -> bytes:
    connection.sendall(GOOD)
    return connection.recv(4096)[9:12]


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(source, 0))


def is_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(4096):  # it may have been answered before
            pass
        return True
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "begun", [b"", b"GET / HTTP/1.1\r\nhost: loc", b"GET / HTTP/1.1\r\ncontent-length: 9\r\n\r\n1"]
)
def test_the_owner_gets_in_however_many_wait(port, begun):
    addresses = [f"127.0.0.{number}" for number in (1, 2, 3)]
    with ExitStack() as stack:
        idle = []
        for source in addresses:
            for _ in range(MAX_CONNECTIONS_OF_ADDRESS + 10):
                idle.append(stack.enter_context(connect(port, source)))
                idle[-1].sendall(begun)
        for source in addresses:
            assert status(stack.enter_context(connect(port, source))) == b"200"
        assert is_closed(idle[0])  # the one that waited longest
    with connect(port) as connection:
        assert status(connection) == b"200"
    assert len(idle) > MAX_CONNECTIONS


def test_a_request_that_dribbles_in_has_no_more_time(port, monkeypatch):
    monkeypatch.setattr(web_connections, "HEADER_SECONDS", 0.5)
    for before in (b"", GOOD):  # the first request of a connection, and a later one
        with connect(port) as connection:
            if before:
                assert status(connection) == b"200"
            began, closed = time.monotonic(), False
            while not closed and time.monotonic() < began + 15:
                try:
                    connection.sendall(b"G")
                    time.sleep(0.1)
                    connection.setblocking(False)
                    closed = connection.recv(65536) == b""
                except BlockingIOError:
                    pass
                except OSError:
                    closed = True
                finally:
                    connection.setblocking(True)
            assert closed


def test_an_answer_that_is_not_read_is_given_up(port, monkeypatch):
    monkeypatch.setattr(web_connections, "READING_SECONDS", 0.3)
    with connect(port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /plotly.min.js HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        until = time.monotonic() + 10
        while is_open(port, connection.getsockname()[1]) and time.monotonic() < until:
            time.sleep(0.1)
        assert not is_open(port, connection.getsockname()[1])


def is_open(port: int, of_client: int) -> bool:
    """Whether the server's side of a connection is open."""
    return any(
        (one.laddr.port, one.raddr.port, one.status) == (port, of_client, psutil.CONN_ESTABLISHED)
        for one in psutil.Process().net_connections("tcp4")
        if one.raddr
    )


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
    ],
)
def test_addresses_of_one_machine_count_together(address, network):
    assert _network(address) == network
