"""The faulty proxy itself: each fault is what it says."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.chaos.proxied_network import FaultyPorts
from tests.chaos.proxy import Fault, FaultyProxy, Way

pytestmark = [pytest.mark.network, pytest.mark.timeout(30)]

SILENT_S = 0.3


class Line:
    """Two sockets that are connected through a proxy."""

    def __init__(self, stack: ExitStack) -> None:
        self.server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.proxy = stack.enter_context(FaultyProxy("{}:{}".format(*self.server.getsockname())))
        self._stack = stack

    def connect(self) -> tuple[socket.socket, socket.socket]:
        host, _, port = self.proxy.address.rpartition(":")
        near = self._stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
        far = self._stack.enter_context(self.server.accept()[0])
        far.settimeout(10)
        near.sendall(b"there")
        assert far.recv(100) == b"there"
        far.sendall(b"and back")
        assert near.recv(100) == b"and back"
        return near, far


@pytest.fixture
def line() -> Iterator[Line]:
    with ExitStack() as stack:
        yield Line(stack)


def is_silent(end: socket.socket) -> bool:
    """Whether nothing comes, neither bytes nor an end."""
    end.settimeout(SILENT_S)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    finally:
        end.settimeout(10)
    return False


def test_a_hole_keeps_what_was_sent(line: Line) -> None:
    near, far = line.connect()
    line.proxy.inflict(Fault.HOLE)
    near.sendall(b"late")
    assert is_silent(far)
    line.proxy.inflict(Fault.NONE)
    assert far.recv(100) == b"late"


@pytest.mark.parametrize("fault", [Fault.HOLE_UP, Fault.HOLE_DOWN])
def test_a_hole_of_one_way_lets_the_other_through(line: Line, fault: Fault) -> None:
    near, far = line.connect()
    mute, deaf = (near, far) if fault is Fault.HOLE_UP else (far, near)
    line.proxy.inflict(fault)
    mute.sendall(b"late")
    deaf.sendall(b"in time")
    assert mute.recv(100) == b"in time"
    assert is_silent(deaf)
    line.proxy.inflict(Fault.NONE)
    assert deaf.recv(100) == b"late"


def test_a_reset_reaches_both(line: Line) -> None:
    near, far = line.connect()
    line.proxy.inflict(Fault.RESET)
    for end in (near, far):
        with pytest.raises(ConnectionResetError):
            end.recv(1)


@pytest.mark.parametrize("fault", [Fault.NO_SERVER, Fault.NO_CALLER])
def test_of_a_half_open_connection_one_end_is_told_and_the_other_never(line: Line, fault: Fault) -> None:
    near, far = line.connect()
    told, other = (far, near) if fault is Fault.NO_SERVER else (near, far)
    line.proxy.inflict(fault)
    with pytest.raises(ConnectionResetError):
        told.recv(1)
    other.sendall(b"are you there?")
    assert is_silent(other)
    line.connect()
    line.proxy.inflict(Fault.NONE)
    other.sendall(b"and now?")
    assert is_silent(other)


@pytest.mark.parametrize("lost", [None, Way.UP, Way.DOWN])
def test_a_cut_comes_once_after_so_many_bytes_of_its_way(line: Line, lost: Way | None) -> None:
    near, far = line.connect()
    line.proxy.cut_after(Way.UP, 8, lost)
    far.sendall(b"back does not count")
    near.recv(100)
    near.sendall(b"up to 8")
    assert far.recv(100) == b"up to 8"
    near.sendall(b"!")
    for end, way in ((near, Way.UP), (far, Way.DOWN)):
        if lost in {None, way}:
            with pytest.raises(ConnectionResetError):
                end.recv(100)
        else:
            assert is_silent(end)
    line.connect()
    assert line.proxy.cuts == 1


def test_a_cut_of_both_ports_counts_the_bytes_of_both() -> None:
    with ExitStack() as stack:
        ports = stack.enter_context(FaultyPorts())
        ends = []
        for proxy in (ports.rpc, ports.blobs):
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            proxy.target = "{}:{}".format(*server.getsockname())
            host, _, port = proxy.address.rpartition(":")
            near = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            ends.append((near, stack.enter_context(server.accept()[0])))
        ports.cut_after(Way.UP, 10)
        for near, far in ends:
            near.sendall(b"7 bytes")
            if near is ends[0][0]:
                assert far.recv(100) == b"7 bytes"
        for near, _ in ends:
            with pytest.raises(ConnectionResetError):
                near.recv(1)
        assert ports.cuts == 1
        assert ports.moved[Way.UP] == 14


def test_one_byte_per_second(line: Line) -> None:
    near, far = line.connect()
    line.proxy.inflict(Fault.BYTE)
    began = time.monotonic()
    near.sendall(b"slow")
    assert [far.recv(1) for _ in range(3)] == [b"s", b"l", b"o"]
    assert time.monotonic() - began >= 2
    line.proxy.inflict(Fault.NONE)
    assert far.recv(100) == b"w"


@pytest.mark.parametrize("fault", [Fault.SLOW, Fault.LOSS, Fault.TRICKLE])
def test_what_is_slow_comes_whole_and_in_order(line: Line, fault: Fault) -> None:
    near, far = line.connect()
    line.proxy.inflict(fault)
    sent = bytes(range(256)) * 4
    began = time.monotonic()
    for _ in range(4):  # each a piece
        near.sendall(sent)
        came = b""
        while len(came) < len(sent):
            came += far.recv(100)
        assert came == sent
    assert time.monotonic() - began > 0.2
