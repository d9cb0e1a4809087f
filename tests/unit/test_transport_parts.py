"""The parts of the transport that need no sockets: table of statuses, addresses, retries, chunks."""

from __future__ import annotations

import json
import threading
import time
from itertools import count
from pathlib import Path
from random import Random
from typing import ClassVar

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.common import errors
from runnel.common.blobs import Spool, SpoolFile, digest_file
from runnel.common.errors import (
    BadSettings,
    CorruptData,
    NotFound,
    RunnelError,
    Unreachable,
)
from runnel.transport import (
    STATUS,
    RetryPolicy,
    is_loopback,
    open_channel,
    parse_address,
    problem_of,
    status_of,
)
from runnel.transport.addresses import own_host_towards
from runnel.transport.chunks import CHUNK_BYTES, QUEUED_BYTES, read_chunks, receive_into
from runnel.transport.status import METADATA_KEY, error_of_problem, error_wire, from_rpc_error
from runnel.transport.tls import ClientTls, ServerTls

pytestmark = pytest.mark.unit

ERRORS = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, RunnelError)]

# ---- status


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_has_its_line_in_the_table(kind: type[RunnelError]) -> None:
    code, http = STATUS[kind]
    assert code is not grpc.StatusCode.OK
    assert 400 <= http <= 599


def test_a_class_without_a_line_has_that_of_its_base() -> None:
    class Narrower(NotFound):
        code = "narrower_for_a_test"

    try:
        assert status_of(Narrower("x")) == status_of(NotFound) == (grpc.StatusCode.NOT_FOUND, 404)
    finally:
        del RunnelError._classes["narrower_for_a_test"]


def _rpc_error(code: grpc.StatusCode, details: str = "", *metadata: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details)


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_survives_the_wire(kind: type[RunnelError]) -> None:
    error = kind("what came", hint="what to do", client="hospital-a", size=7)
    came = from_rpc_error(_rpc_error(STATUS[kind][0], "", (METADATA_KEY, error_wire(error))), peer="p")
    assert type(came) is kind
    told = "p: what came" if kind is errors.StorageFull else "what came"  # whose folder it is, nobody further up knows
    assert came.as_wire() == error.as_wire() | {"message": told}


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_survives_http(kind: type[RunnelError]) -> None:
    problem = problem_of(kind("what came", hint="what to do", client="hospital-a"))
    assert problem["status"] == STATUS[kind][1]
    came = error_of_problem(json.loads(json.dumps(problem)))
    assert type(came) is kind
    assert (came.message, came.hint, came.fields) == ("what came", "what to do", {"client": "hospital-a"})


@given(
    message=st.text(max_size=6000), fields=st.dictionaries(st.text(max_size=99), st.text(max_size=3000), max_size=40)
)
def test_an_error_of_any_size_fits_the_metadata(message: str, fields: dict[str, str]) -> None:
    error = RunnelError(message)
    error.fields = dict(fields)
    data = error_wire(error)
    assert len(data) <= 4096
    assert RunnelError.from_wire(json.loads(data)).message == message[: len(json.loads(data)["message"])]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unreachable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, errors.Unreachable),
        (grpc.StatusCode.UNIMPLEMENTED, errors.IllegalState),
        (grpc.StatusCode.UNKNOWN, errors.RunnelError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.CapacityExceeded),
    ],
)
def test_without_our_metadata_the_code_tells(code: grpc.StatusCode, kind: type[RunnelError]) -> None:
    came = from_rpc_error(_rpc_error(code, "connection refused"), peer="red at 127.0.0.1:1")
    assert type(came) is kind
    assert "red at 127.0.0.1:1" in came.message
    assert "connection refused" in came.message


def test_a_message_over_the_limit_is_too_large() -> None:
    error = _rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (17 vs. 16)")
    assert type(from_rpc_error(error, peer="p")) is errors.TooLarge


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'"x"', b"\xff"])
def test_metadata_that_is_not_ours_does_no_harm(data: bytes) -> None:
    came = from_rpc_error(_rpc_error(grpc.StatusCode.NOT_FOUND, "gone", (METADATA_KEY, data)), peer="p")
    assert type(came) is NotFound


# ---- addresses, channels, TLS files


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7400", "127.0.0.1", 7400),
        ("combiner.example.org:0", "combiner.example.org", 0),
        ("[::1]:65535", "::1", 65535),
        (" localhost:80 ", "localhost", 80),
    ],
)
def test_addresses_are_read(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert (address.host, address.port) == (host, port)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", "7400", ":7400", "host", "host:", "host:x", "host:70000", "host:-1", "::1:7400", "[host]:1", "http://h:1"],
)
def test_what_is_no_address_is_named(text: str) -> None:
    with pytest.raises(BadSettings, match="--network must be HOST:PORT"):
        parse_address(text, key="--network")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("example.org", False),
    ],
)
def test_loopback_is_recognised(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("bound", "host", "called"),
    [
        ("127.0.0.1:7400", "", "127.0.0.1:7400"),
        ("192.0.2.7:7400", "reducer.example.org", "192.0.2.7:7400"),
        ("reducer.example.org:7400", "192.0.2.7", "reducer.example.org:7400"),
        ("0.0.0.0:7400", "", "127.0.0.1:7400"),
        ("0.0.0.0:7400", "reducer.example.org", "reducer.example.org:7400"),
        ("[::]:7400", "", "[::1]:7400"),
        ("[::]:7400", "2001:db8::7", "[2001:db8::7]:7400"),
    ],
)
def test_what_is_listened_on_is_told_as_what_can_be_called(bound: str, host: str, called: str) -> None:
    assert str(parse_address(bound).to_call(host)) == called
    assert not parse_address(called).everywhere


def test_the_own_address_is_the_one_that_a_peer_would_see() -> None:
    assert own_host_towards(parse_address("127.0.0.1:7400")) == "127.0.0.1"
    assert own_host_towards(parse_address("no-such-host.invalid:7400")) == ""


async def test_plain_text_to_another_machine_needs_leave() -> None:
    with pytest.raises(BadSettings, match="without TLS") as caught:
        open_channel("combiner.example.org:7400", tls=None)
    assert "--allow-plaintext" in caught.value.hint
    channel = open_channel("combiner.example.org:7400", tls=None, allow_plaintext=True)
    await channel.close()


def test_tls_files_that_can_not_be_used_are_named(tmp_path: Path) -> None:
    missing, rubbish = tmp_path / "missing.pem", tmp_path / "rubbish.pem"
    rubbish.write_text("not a certificate")
    with pytest.raises(BadSettings, match=r"missing\.pem can't be read: No such file"):
        ServerTls(cert_file=missing, key_file=missing).credentials()
    with pytest.raises(BadSettings, match=r"rubbish\.pem is not a PEM file"):
        ClientTls(ca_file=rubbish).credentials()


# ---- retries


@given(
    initial=st.floats(0.001, 1),
    longest=st.floats(1, 10),
    multiplier=st.floats(1, 4),
    jitter=st.floats(0, 1),
    seed=st.integers(),
)
def test_delays_stay_in_their_bounds(
    initial: float, longest: float, multiplier: float, jitter: float, seed: int
) -> None:
    policy = RetryPolicy(initial_s=initial, max_s=longest, multiplier=multiplier, jitter=jitter)
    delays = policy.delays(Random(seed))
    top = initial
    for _ in range(20):
        delay = next(delays)
        assert top * (1 - jitter) - 1e-9 <= delay <= top
        top = min(longest, top * multiplier)


class Flaky:
    def __init__(self, *outcomes: RunnelError | str) -> None:
        self.outcomes = list(outcomes)
        self.slept: list[float] = []

    async def __call__(self) -> str:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, RunnelError):
            raise outcome
        return outcome

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


async def test_a_call_is_tried_again_until_it_succeeds() -> None:
    flaky = Flaky(Unreachable("a"), Unreachable("b"), "done")
    policy = RetryPolicy(jitter=0)
    assert await policy.call(flaky, sleep=flaky.sleep) == "done"
    assert flaky.slept == [0.1, 0.2]


async def test_what_retrying_can_not_mend_is_raised_at_once() -> None:
    flaky = Flaky(NotFound("no"), "never")
    with pytest.raises(NotFound):
        await RetryPolicy().call(flaky, sleep=flaky.sleep)
    assert flaky.slept == []


async def test_attempts_are_counted() -> None:
    flaky = Flaky(*(Unreachable(str(number)) for number in range(5)))
    with pytest.raises(Unreachable, match="2"):
        await RetryPolicy(attempts=3).call(flaky, sleep=flaky.sleep)
    assert len(flaky.slept) == 2


@pytest.mark.parametrize("limit", ["deadline", "total"])
async def test_no_wait_outlives_the_deadline(limit: str) -> None:
    flaky = Flaky(Unreachable("first"), Unreachable("second"), "too late")
    policy = RetryPolicy(initial_s=50.0, max_s=100.0, jitter=0, total_s=90.0 if limit == "total" else None)
    with pytest.raises(Unreachable, match="first" if limit == "deadline" else "second"):
        await policy.call(flaky, sleep=flaky.sleep, deadline_s=40.0 if limit == "deadline" else None)
    assert sum(flaky.slept) <= 50.0


# ---- chunks


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES - 7])
async def test_chunks_are_the_file(tmp_path: Path, size: int) -> None:
    data = Random(size).randbytes(size)
    source = tmp_path / "source"
    source.write_bytes(data)
    ref = digest_file(source)
    assert b"".join([chunk async for chunk in read_chunks(source, size // 3, size)]) == data[size // 3 :]
    file = Spool(tmp_path / "spool").open("k", ref)
    await receive_into(file, read_chunks(source, 0, size))
    assert file.finish().read_bytes() == data


@pytest.mark.parametrize("in_memory", [False, True])
async def test_the_first_chunk_can_be_smaller(tmp_path: Path, in_memory: bool) -> None:
    data = Random(0).randbytes(2 * CHUNK_BYTES)
    source = tmp_path / "source"
    source.write_bytes(data)
    given = memoryview(data) if in_memory else source
    chunks = [chunk async for chunk in read_chunks(given, 5, len(data), first_bytes=QUEUED_BYTES)]
    assert [len(chunk) for chunk in chunks] == [QUEUED_BYTES, CHUNK_BYTES, CHUNK_BYTES - QUEUED_BYTES - 5]
    assert b"".join(chunks) == data[5:]


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(
    ("pause_s", "sizes"), [(0.0, [512, 1024, 1024, 1024, 1024, 512]), (0.03, [512, 512, 512, 512, 512, 512])]
)
async def test_chunks_grow_only_where_they_go_fast(
    tmp_path: Path, pause_s: float, sizes: list[int], in_memory: bool
) -> None:
    data = bytes(sum(sizes) << 10)
    source = tmp_path / "source"
    source.write_bytes(data)
    offered = memoryview(data) if in_memory else source
    times = (pause_s * (n // 2 + n % 2) for n in count())  # looked at before and after each chunk
    chunks = [len(chunk) >> 10 async for chunk in read_chunks(offered, 0, len(data), clock=lambda: next(times))]
    assert chunks == sizes


class _SlowDisk(SpoolFile):
    """Writes as slowly as a disk that is full of work, and remembers where it was asked to."""

    threads: ClassVar[list[bool]] = []

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.threads.append(threading.current_thread() is not threading.main_thread())
        time.sleep(0.06)  # not a wait for something: it stands for a disk
        super().write(offset, data)


async def test_a_slow_disk_is_waited_for_in_a_thread(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(3 * CHUNK_BYTES))
    file = _SlowDisk(partial=tmp_path / "part", whole=tmp_path / "whole", ref=digest_file(source))
    await receive_into(file, read_chunks(source, 0, 3 * CHUNK_BYTES))
    assert file.finish().read_bytes() == bytes(3 * CHUNK_BYTES)
    assert _SlowDisk.threads == [False, True, True]


async def test_a_file_that_shrank_is_noticed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"1234")
    with pytest.raises(CorruptData, match="ends at byte 4 and should have 5"):
        [chunk async for chunk in read_chunks(source, 0, 5)]
