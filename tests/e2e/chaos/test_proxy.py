"""The proxy itself: what it passes on, holds back, delays and resets."""

import socket
import threading
import time

import pytest
from proxy import Proxies


@pytest.fixture
def echo():
    """A proxy in front of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection):
        with connection:
            try:
                while data := connection.recv(1000):
                    connection.sendall(data)
            except ConnectionError:
                pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with Proxies() as proxies:
        yield proxies.add(lambda: listener.getsockname()[1])
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


def connect(proxy):
    connection = socket.create_connection(("127.0.0.1", proxy.port), 10)
    connection.settimeout(10)
    return connection


def test_passes_on(echo):
    with connect(echo) as connection:
        connection.sendall(b"hello")
        assert connection.recv(100) == b"hello"


def test_delays_both_ways(echo):
    with connect(echo) as connection:
        connection.sendall(b"x")
        connection.recv(100)
        echo.delay(0.2)
        begin = time.monotonic()
        connection.sendall(b"y")
        assert connection.recv(100) == b"y"
        assert time.monotonic() - begin >= 0.4


def test_cuts_with_a_reset_and_serves_the_next(echo):
    with connect(echo) as connection:
        connection.sendall(b"x")
        connection.recv(100)
        assert echo.cut() == 2, "both ends"
        with pytest.raises(ConnectionResetError):
            connection.recv(100)
    test_passes_on(echo)


def test_blackhole_holds_back_and_then_delivers(echo):
    with connect(echo) as connection:
        connection.sendall(b"x")
        connection.recv(100)
        echo.blackhole(True)
        connection.sendall(b"held")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        echo.blackhole(False)
        connection.settimeout(10)
        assert connection.recv(100) == b"held"


def test_nobody_behind_is_a_reset():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with Proxies() as proxies:
        proxy = proxies.add(lambda: port)
        with pytest.raises(ConnectionResetError), connect(proxy) as connection:
            connection.recv(100)
